//! Reads the body of an answer: images, seeds, and its words, shortened for people and events.

use serde_json::{Map, Value};

/// The most that a failure repeats of an answer, in bytes of JSON.
const MAX_ANSWER: usize = 4096;
/// The most of one string in it. Anything longer is an echoed image or a whole prompt list.
const MAX_STRING: usize = 512;
/// A string this long without a space is data, not words.
const MAX_WORD: usize = 120;
/// The most of a message that comes from outside, in characters.
const MAX_LINE: usize = 300;

/// A parsed body.
#[derive(Debug)]
pub(super) struct Body {
    /// The body, or its text as a string where it is no JSON.
    value: Value,
    /// Whether it was JSON.
    pub(super) is_json: bool,
}

impl Body {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        if let Ok(value) = serde_json::from_slice(bytes) {
            return Self { value, is_json: true };
        }
        // Enough for a person; a body can be of any size.
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_ANSWER)]);
        Self { value: Value::String(text.into_owned()), is_json: false }
    }

    pub(super) fn images(&self) -> &[Value] {
        self.value["images"].as_array().map_or(&[], Vec::as_slice)
    }

    /// Whether it has a list of images at all, be it empty: every answer to a request for images does.
    pub(super) fn lists_images(&self) -> bool {
        self.value["images"].is_array()
    }

    /// Whether the answer describes nothing at all, as one without a model does.
    pub(super) fn lacks_info(&self) -> bool {
        self.value["info"].as_str().is_some_and(str::is_empty)
    }

    /// The description of the images: JSON inside a string.
    pub(super) fn info(&self) -> Value {
        let info = &self.value["info"];
        info.as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_else(|| info.clone())
    }

    /// The seed of each of `count` entries of the image list, where the answer says which is whose.
    ///
    /// `all_seeds` lists what was asked for and `infotexts` what came: after a skip, one image is left of three and
    /// its text names the third seed. So the texts decide where there is one for each entry, and otherwise the seeds
    /// do if their number fits, grids ahead included.
    pub(super) fn seeds(&self, count: usize) -> Vec<Option<i64>> {
        let info = self.info();
        let numbers = |name: &str| -> Vec<Option<i64>> {
            info[name].as_array().map(|all| all.iter().map(Value::as_i64).collect()).unwrap_or_default()
        };
        let all_seeds = numbers("all_seeds");
        let texts = info["infotexts"].as_array().map_or(&[][..], Vec::as_slice);
        if texts.len() == count {
            let named: Vec<_> = texts.iter().map(|text| text.as_str().and_then(seed_in)).collect();
            // A prompt may contain anything, so a seed counts only if it was asked for.
            if named.iter().all(|seed| seed.is_some() && all_seeds.contains(seed)) {
                return named;
            }
        }
        let grids = count.saturating_sub(all_seeds.len());
        let first =
            info["index_of_first_image"].as_u64().and_then(|first| usize::try_from(first).ok()).unwrap_or(0);
        if all_seeds.len() + grids == count && (grids == 0 || grids == first) {
            return std::iter::repeat_n(None, grids).chain(all_seeds).collect();
        }
        vec![None; count]
    }

    /// The answer's own words about an error, in one line.
    pub(super) fn said(&self) -> String {
        if !self.is_json {
            return first_line(self.value.as_str().unwrap_or_default());
        }
        let detail = &self.value["detail"];
        let first = |values: &[&Value]| {
            let texts = values.iter().filter_map(|value| value.as_str());
            texts.map(first_line).find(|text| !text.is_empty()).unwrap_or_default()
        };
        let field = &detail[0];
        if let Some(message) = field["msg"].as_str() {
            let names = field["loc"].as_array().map_or(&[][..], Vec::as_slice);
            let name = names.iter().filter_map(Value::as_str).rfind(|name| *name != "body");
            let message = first_line(message);
            return name.map_or(message.clone(), |name| format!("{}: {message}", first_line(name)));
        }
        first(&[detail, &self.value["errors"], &self.value["error"], &self.value["message"]])
    }

    /// Whether an error names a failed allocation.
    pub(super) fn names_out_of_memory(&self) -> bool {
        let texts = ["error", "detail", "errors"].map(|name| self.value[name].as_str().unwrap_or_default());
        texts.iter().any(|text| {
            let text = text.to_ascii_lowercase();
            text.contains("outofmemory") || text.contains("out of memory")
        })
    }

    /// The answer for the record: at most 4 KiB, data cut out, nulls left out.
    pub(super) fn shortened(&self) -> Option<Value> {
        let fits = |value: &Value| serde_json::to_vec(value).is_ok_and(|json| json.len() <= MAX_ANSWER);
        let mut value = elide(&self.value);
        if value.is_null() {
            return None;
        }
        if !fits(&value)
            && let Value::Object(fields) = &mut value
        {
            // The echo of our own request is the largest part, and we know it.
            fields.remove("parameters");
        }
        if fits(&value) {
            return Some(value);
        }
        // Escaping a string can double it, and what is not ASCII takes up to four bytes.
        let text: String = value.to_string().chars().take(MAX_ANSWER / 8).collect();
        Some(Map::from_iter([("shortened".to_owned(), Value::String(text))]).into())
    }
}

/// The first line of a text, without a full stop and not too long.
pub(super) fn first_line(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default().trim_end_matches(['.', ' ']);
    line.chars().filter(|c| !c.is_control()).take(MAX_LINE).collect()
}

fn elide(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(elide_text(text)),
        Value::Array(items) => items.iter().map(elide).collect(),
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            fields.map(|(name, value)| (name.clone(), elide(value))).collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

fn elide_text(text: &str) -> String {
    let is_data = |text: &str| text.len() > MAX_WORD && !text.contains(char::is_whitespace);
    if is_data(text) || text.starts_with("data:image/") {
        return format!("(data of {} characters)", text.len());
    }
    if text.len() <= MAX_STRING {
        return text.to_owned();
    }
    let head: String = text.chars().take(MAX_STRING).collect();
    format!("{head}... ({} characters)", text.chars().count())
}

/// The seed that the description of one image names.
fn seed_in(text: &str) -> Option<i64> {
    let (_, rest) = text.rsplit_once(", Seed: ")?;
    rest.split(|c: char| !c.is_ascii_digit() && c != '-').next()?.parse().ok()
}
