//! Drawing a trace as a tree of lines, without what differs from run to run.

use std::fmt::Write as _;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use super::Span;

/// Attributes that are drawn, where a span has them.
const DRAWN: [&str; 6] =
    ["attempt", "backend", "http.response.status_code", "images", "receivers", "error.type"];
/// Column at which the service stands.
const SERVICE_AT: usize = 52;

/// The spans of one trace, each below its parent: what follows one another as it did, what reads the same message by
/// service. What is only asked of a server is left out, as it depends on what is still known of it.
pub fn draw(spans: &[Span]) -> String {
    let spans: Vec<Span> = spans.iter().filter(|span| !is_question(span)).cloned().collect();
    let begins = |span: &&Span| !spans.iter().any(|other| other.id == span.parent);
    let mut lines = Vec::new();
    for root in in_order(spans.iter().filter(begins).collect()) {
        line(root, "", "", &mut lines);
        below(root, &spans, "", &mut lines);
    }
    lines.join("\n")
}

fn is_question(span: &Span) -> bool {
    span.kind == SpanKind::Client && span.name.starts_with("GET ")
}

fn below(parent: &Span, spans: &[Span], indent: &str, lines: &mut Vec<String>) {
    let children = in_order(spans.iter().filter(|span| span.parent == parent.id).collect());
    let last = children.len().saturating_sub(1);
    for (index, child) in children.into_iter().enumerate() {
        let (branch, further) = if index == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        line(child, indent, branch, lines);
        below(child, spans, &format!("{indent}{further}"), lines);
    }
}

/// Readers of one message run beside each other: which is first is chance.
fn in_order(mut spans: Vec<&Span>) -> Vec<&Span> {
    spans.sort_by_key(|span| {
        let reads = span.kind == SpanKind::Consumer;
        (reads.then(|| span.service.clone()), if reads { 0 } else { span.start })
    });
    spans
}

fn line(span: &Span, indent: &str, branch: &str, lines: &mut Vec<String>) {
    let name = format!("{indent}{branch}{}", span.name);
    let kind = format!("{:?}", span.kind).to_lowercase();
    let mut line = format!("{name:SERVICE_AT$} {:16} {kind}", span.service);
    let drawn = DRAWN.iter().filter_map(|name| Some((name, span.attributes.get(*name)?)));
    for (name, value) in drawn {
        let _ = write!(line, " {name}={value}");
    }
    if span.is_error {
        line += " ERROR";
    }
    lines.push(line);
}
