//! Schemas as they are held against our own messages: nothing may be in them that is not described.

use serde_json::{Map, Value, json};

/// Closes what a schema leaves open for versions to come: fields that it does not name, and words that it does not know.
pub fn strictly(mut definitions: Value) -> Value {
    let schemas = definitions.as_object_mut().into_iter().flat_map(Map::values_mut);
    schemas.for_each(|schema| close(schema, false));
    definitions
}

/// `part` says that the schema describes only some fields of an object, whose others another schema describes.
fn close(schema: &mut Value, part: bool) {
    let Some(fields) = schema.as_object_mut() else { return };
    close_words(fields);
    let is_object = fields.contains_key("properties");
    for (keyword, value) in fields.iter_mut() {
        match keyword.as_str() {
            "oneOf" | "anyOf" | "allOf" => {
                let schemas = value.as_array_mut().into_iter().flatten();
                schemas.for_each(|schema| close(schema, part || is_object));
            }
            "properties" => {
                let schemas = value.as_object_mut().into_iter().flat_map(Map::values_mut);
                schemas.for_each(|schema| close(schema, false));
            }
            "items" | "additionalProperties" => close(value, false),
            _ => {}
        }
    }
    if is_object && !part && !fields.contains_key("additionalProperties") {
        fields.insert("unevaluatedProperties".to_owned(), json!(false));
    }
}

/// Of known words beside any string, the known ones stay.
fn close_words(fields: &mut Map<String, Value>) {
    let Some(choices) = fields.get_mut("anyOf").and_then(Value::as_array_mut) else { return };
    let is_known = |choice: &Value| choice.get("const").is_some() || choice.get("enum").is_some();
    if choices.iter().any(is_known) {
        choices.retain(|choice| is_known(choice) || choice["type"] != "string");
    }
}
