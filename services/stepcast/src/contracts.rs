//! The contracts with other programs, written from the types: JSON Schema of every message, AsyncAPI of WebSocket and
//! NATS, OpenAPI of HTTP. They are kept in `docs/contracts`, where a reader sees what a change does to them.

mod asyncapi;
mod schemas;

use std::path::Path;

use anyhow::Context as _;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::contracts::schemas::Schemas;
use crate::exit::Exit;
use crate::{cli, out};

/// Every document: the name of its file, and what is in it.
pub fn documents() -> anyhow::Result<Vec<(&'static str, Value)>> {
    // AsyncAPI's own dialect is a superset of draft 7, and its tools read no other without a plug-in.
    let older = SchemaSettings::draft07().with(|settings| {
        settings.meta_schema = None;
        settings.definitions_path = "/components/schemas".into();
    });
    let schemas = Schemas::collect(&SchemaSettings::draft2020_12())?;
    Ok(vec![
        ("schemas.json", schemas.document()),
        ("asyncapi.json", asyncapi::document(Schemas::collect(&older)?)),
        ("openapi.json", serde_json::to_value(stepcast_api::contract::openapi())?),
    ])
}

/// `contracts`.
pub fn run(args: &cli::Contracts, json: bool) -> anyhow::Result<Exit> {
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("the folder {} cannot be made", args.out.display()))?;
    for (name, document) in documents()? {
        let path = args.out.join(name);
        write(&path, &document).with_context(|| format!("{} cannot be written", path.display()))?;
        if !json {
            out::line(&path.display().to_string())?;
        }
    }
    Ok(Exit::Done)
}

fn write(path: &Path, document: &Value) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(&sorted(document))?;
    text.push('\n');
    Ok(std::fs::write(path, text)?)
}

/// With fields in the order of their names, whatever map `serde_json` was built with.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> =
                fields.iter().map(|(name, value)| (name.clone(), sorted(value))).collect();
            fields.sort_by(|one, other| one.0.cmp(&other.0));
            Value::Object(Map::from_iter(fields))
        }
        Value::Array(values) => values.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Written again and committed, a change of a type becomes a change that its reviewer sees.
    #[test]
    fn the_committed_contracts_are_those_of_the_types() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/contracts");
        for (name, document) in documents().unwrap() {
            let committed = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
            let committed: Value = serde_json::from_str(&committed).unwrap_or_default();
            assert!(
                committed == document,
                "docs/contracts/{name} is out of date: `make contracts` writes it"
            );
        }
    }
}
