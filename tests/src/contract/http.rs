//! Answers over HTTP, held against the OpenAPI document.

use serde_json::Value;

use super::Contract;

/// Where the schemas of all answers in JSON are.
pub(super) fn answers(openapi: &Value) -> Vec<String> {
    let fields = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let mut places = Vec::new();
    for (path, operations) in fields(&openapi["paths"]) {
        for (method, operation) in fields(&operations) {
            let responses =
                fields(&operation["responses"]).into_iter().filter(|(_, response)| is_json(response));
            places.extend(responses.map(|(status, _)| place(&path, &method, &status)));
        }
    }
    places
}

fn is_json(response: &Value) -> bool {
    response["content"]["application/json"]["schema"].is_object()
}

fn place(path: &str, method: &str, status: &str) -> String {
    // As a JSON pointer, in a fragment.
    let path = path.replace('~', "~0").replace('/', "~1").replace('{', "%7B").replace('}', "%7D");
    format!("urn:openapi#/paths/{path}/{method}/responses/{status}/content/application~1json/schema")
}

impl Contract {
    /// Holds an answer against what is described of its request. What is not described at all passes: pages, health,
    /// and what other servers answer.
    pub fn check_answer(
        &self,
        method: &str,
        path: &str,
        status: u16,
        content_type: &str,
        body: &Value,
    ) -> Result<(), String> {
        let path = path.split('?').next().unwrap_or(path);
        let Some(template) = self.template(path) else { return Ok(()) };
        let method = method.to_lowercase();
        let responses = &self.openapi["paths"][template][&method]["responses"];
        if responses.is_null() {
            // Such as a browser's own question before it asks across origins.
            return Ok(());
        }
        let complain = |what: &str| format!("{method} {path} answered {status}: {what}: {body}");
        // What a proxy says while nobody is behind it.
        if matches!(status, 502 | 504) && content_type.starts_with("text/html") {
            return Ok(());
        }
        if status >= 400 {
            let problem = self.check("Problem", body).map_err(|error| complain(&error));
            let is_problem = content_type.starts_with("application/problem+json");
            return if is_problem { problem } else { Err(complain("this is no problem+json")) };
        }
        let response = &responses[status.to_string()];
        if response.is_null() {
            return Err(complain("docs/contracts/openapi.json does not tell of this"));
        }
        if !is_json(response) {
            return Ok(());
        }
        self.check_at(&place(template, &method, &status.to_string()), body).map_err(|error| complain(&error))
    }

    /// The described path that fits, one without parameters first.
    fn template(&self, path: &str) -> Option<&str> {
        let paths = self.openapi["paths"].as_object()?;
        let fits = |template: &&String| {
            let (mut asked, mut described) = (path.split('/'), template.split('/'));
            loop {
                match (asked.next(), described.next()) {
                    (None, None) => return true,
                    (Some(part), Some(name)) if part == name || name.starts_with('{') => {}
                    _ => return false,
                }
            }
        };
        paths.keys().filter(fits).min_by_key(|template| template.matches('{').count()).map(String::as_str)
    }
}
