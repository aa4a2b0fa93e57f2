//! Examples that show the shape of a message and not all of it.

use serde_json::Value;

/// Schemas that miss no field.
pub(super) fn schemas(mut schemas: Value) -> Value {
    relax(&mut schemas);
    schemas
}

fn relax(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.contains_key("properties") {
                fields.remove("required");
            }
            fields.values_mut().for_each(relax);
        }
        Value::Array(schemas) => schemas.iter_mut().for_each(relax),
        _ => {}
    }
}

/// A value without what is only hinted at.
pub(super) fn what_is_said(value: &Value) -> Value {
    let is_hint = |value: &Value| value.as_str().is_some_and(|text| text.contains('…'));
    match value {
        Value::Object(fields) => {
            let said = fields.iter().filter(|(_, value)| !is_hint(value));
            said.map(|(name, value)| (name.clone(), what_is_said(value))).collect()
        }
        Value::Array(values) => values.iter().filter(|value| !is_hint(value)).map(what_is_said).collect(),
        other => other.clone(),
    }
}
