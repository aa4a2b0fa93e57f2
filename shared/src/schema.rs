//! What the JSON Schemas of our messages have in common. They are derived from the types; this is what a derive cannot
//! know.

use schemars::Schema;
use serde_json::json;

/// Opens an enum of words: those that it has are documented, and a reader takes any other, since some may be added.
pub fn open(schema: &mut Schema) {
    let known = schema.remove("oneOf").or_else(|| {
        let words = schema.remove("enum")?;
        Some(json!([{"type": "string", "enum": words}]))
    });
    let Some(serde_json::Value::Array(mut words)) = known else { return };
    schema.remove("type");
    words.push(
        json!({"type": "string", "description": "Others may be added; readers take them for unknown."}),
    );
    schema.insert("anyOf".to_owned(), words.into());
}
