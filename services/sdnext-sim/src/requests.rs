//! Bodies of generation requests: every field of the recorded schema, its default, and the errors of a wrong one.
//!
//! Fields that the schema does not name are ignored, as the recorded server ignores them.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Number, Value, json};

use crate::json_error::first_error;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Txt2img,
    Img2img,
}

impl Kind {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Txt2img => "/sdapi/v1/txt2img",
            Self::Img2img => "/sdapi/v1/img2img",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Txt2img => "txt2img",
            Self::Img2img => "img2img",
        }
    }

    /// What A1111 and Forge call a job that came over the API.
    pub(crate) fn script(self) -> &'static str {
        match self {
            Self::Txt2img => "scripts_txt2img",
            Self::Img2img => "scripts_img2img",
        }
    }

    /// Label of the stage that brackets a request.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Txt2img => "API-TXT",
            Self::Img2img => "API-IMG",
        }
    }
}

/// Name, type, whether null is allowed, default.
type Field = (String, String, bool, Value);

#[derive(Deserialize)]
struct Schema {
    common: Vec<Field>,
    txt2img: Vec<Field>,
    img2img: Vec<Field>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    serde_json::from_str(include_str!("data/fields.json")).expect("the file in the repository is well-formed")
});

/// All fields of a request, the missing ones at their defaults; or the body of a 422.
pub(crate) fn parse(kind: Kind, is_json: bool, body: &[u8]) -> Result<Map<String, Value>, Value> {
    if body.is_empty() {
        return Err(detail(&[problem("missing", &json!(["body"]), "Field required", &Value::Null)]));
    }
    let text = String::from_utf8_lossy(body);
    let sent = if is_json { from_json(&text)? } else { json!(text) };
    let Value::Object(sent) = sent else {
        let message = "Input should be a valid dictionary or object to extract fields from";
        return Err(detail(&[problem("model_attributes_type", &json!(["body"]), message, &sent)]));
    };
    let own = match kind {
        Kind::Txt2img => &SCHEMA.txt2img,
        Kind::Img2img => &SCHEMA.img2img,
    };
    let mut fields = Map::new();
    let mut problems = Vec::new();
    for (name, shape, nullable, default) in SCHEMA.common.iter().chain(own) {
        let value = match sent.get(name) {
            None => default.clone(),
            Some(Value::Null) if *nullable => Value::Null,
            Some(value) => match coerce(shape, value) {
                Ok(value) => value,
                Err((code, message)) => {
                    problems.push(problem(code, &json!(["body", name]), message, value));
                    continue;
                }
            },
        };
        fields.insert(name.clone(), value);
    }
    if problems.is_empty() { Ok(fields) } else { Err(detail(&problems)) }
}

/// The body of a 422 for a query parameter that is missing.
pub(crate) fn missing_query(name: &str) -> Value {
    detail(&[problem("missing", &json!(["query", name]), "Field required", &Value::Null)])
}

fn from_json(text: &str) -> Result<Value, Value> {
    serde_json::from_str(text).map_err(|_| {
        let (at, message) = first_error(text).unwrap_or((0, "Expecting value"));
        let mut problem = problem("json_invalid", &json!(["body", at]), "JSON decode error", &json!({}));
        problem["ctx"] = json!({"error": message});
        detail(&[problem])
    })
}

fn detail(problems: &[Value]) -> Value {
    json!({"detail": problems})
}

fn problem(code: &str, place: &Value, message: &str, input: &Value) -> Value {
    json!({"type": code, "loc": place, "msg": message, "input": input})
}

type Refusal = (&'static str, &'static str);

fn coerce(shape: &str, value: &Value) -> Result<Value, Refusal> {
    match shape {
        "integer" => integer(value),
        "number" => number(value),
        "boolean" => boolean(value),
        "string" if !value.is_string() => Err(("string_type", "Input should be a valid string")),
        "array" if !value.is_array() => Err(("list_type", "Input should be a valid list")),
        "object" if !value.is_object() => Err(("dict_type", "Input should be a valid dictionary")),
        _ => Ok(value.clone()),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "only whole numbers that a 64-bit integer holds get there"
)]
fn integer(value: &Value) -> Result<Value, Refusal> {
    match value {
        Value::Number(number) if !number.is_f64() => Ok(value.clone()),
        Value::Number(number) => match number.as_f64() {
            Some(float) if float.fract() == 0.0 && float.abs() < 9e18 => Ok(json!(float as i64)),
            _ => Err((
                "int_from_float",
                "Input should be a valid integer, got a number with a fractional part",
            )),
        },
        Value::Bool(flag) => Ok(json!(i64::from(*flag))),
        Value::String(text) => text.trim().parse::<i64>().map(Value::from).map_err(|_| {
            ("int_parsing", "Input should be a valid integer, unable to parse string as an integer")
        }),
        _ => Err(("int_type", "Input should be a valid integer")),
    }
}

fn number(value: &Value) -> Result<Value, Refusal> {
    let float = match value {
        Value::Number(number) => number.as_f64(),
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::String(text) => Some(text.trim().parse::<f64>().map_err(|_| {
            ("float_parsing", "Input should be a valid number, unable to parse string as a number")
        })?),
        _ => None,
    };
    let number = float.and_then(Number::from_f64).ok_or(("float_type", "Input should be a valid number"))?;
    Ok(Value::Number(number))
}

fn boolean(value: &Value) -> Result<Value, Refusal> {
    let unclear = ("bool_parsing", "Input should be a valid boolean, unable to interpret input");
    match value {
        Value::Bool(_) => Ok(value.clone()),
        Value::Number(number) => match number.as_f64() {
            Some(0.0) => Ok(json!(false)),
            Some(1.0) => Ok(json!(true)),
            _ => Err(unclear),
        },
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "on" | "1" => Ok(json!(true)),
            "false" | "f" | "no" | "n" | "off" | "0" => Ok(json!(false)),
            _ => Err(unclear),
        },
        _ => Err(("bool_type", "Input should be a valid boolean")),
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, parse};

    #[test]
    fn empty_object_gets_every_default() {
        let fields = parse(Kind::Txt2img, true, b"{}").expect("valid");
        assert_eq!(fields["width"], 1024);
        assert_eq!(fields["steps"], 20);
        assert_eq!(fields["denoising_strength"], 0.3);
        assert_eq!(parse(Kind::Img2img, true, b"{}").expect("valid")["denoising_strength"], 0.5);
    }

    #[test]
    fn numbers_in_strings_are_numbers() {
        let fields = parse(Kind::Txt2img, true, br#"{"steps": "12", "cfg_scale": 7}"#).expect("valid");
        assert_eq!(fields["steps"], 12);
        assert_eq!(fields["cfg_scale"].to_string(), "7.0");
    }

    #[test]
    fn every_wrong_field_is_named() {
        let problems = parse(Kind::Txt2img, true, br#"{"steps": 1.5, "tiling": "perhaps", "prompt": 3}"#);
        let body = problems.expect_err("three problems");
        let codes: Vec<_> =
            body["detail"].as_array().expect("a list").iter().map(|p| p["type"].clone()).collect();
        assert_eq!(codes, ["string_type", "int_from_float", "bool_parsing"], "in the order of the schema");
    }
}
