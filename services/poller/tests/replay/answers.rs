//! Recorded answers with whole images.
//!
//! The recordings cut most images to 48 characters and keep their length. A cut image is replaced by a whole one whose
//! header is set to the size that the length implies: noise takes 0.6 to 1.2 characters of base64 a pixel at the size
//! that the image's own description names, and what is far shorter than that is the preview, 128 x 128 in every whole
//! specimen (21,096 characters). The specimen that is altered is the whole image of `interrupt`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::Value;
use stepcast_poller::verifier::{Answer, TransportKind};

use super::recordings::{Exchange, Recording, list};

/// A request and its response, as the files beside the scenarios have them.
pub(crate) fn exchange(request: &Value, response: &Value) -> Exchange {
    Exchange {
        path: request["path"].as_str().unwrap_or_default().to_owned(),
        request: request["json"].clone(),
        model_unloaded: false,
        submitted: 0.0,
        done: None,
        status: response["status"].as_u64().and_then(|status| u16::try_from(status).ok()),
        body: response["body"].clone(),
        error: None,
    }
}

/// The recorded answer, with whole images in place of those that were cut.
pub(crate) fn answer(exchange: &Exchange) -> Answer {
    let Some(status) = exchange.status else {
        let message = exchange.error.clone().expect("no response has an error");
        return Answer::Transport { kind: TransportKind::Reset, message };
    };
    let mut body = exchange.body.clone();
    // A 422 echoes the image that it was sent.
    if let Some(echoed) = body.pointer_mut("/detail/0/input")
        && echoed.as_str().is_some_and(|text| text.contains("(truncated)"))
    {
        *echoed = specimen(512, 512).into();
    }
    if let Some(lengths) = body.get("_recorded_images").cloned() {
        let info: Value = serde_json::from_str(body["info"].as_str().unwrap_or_default()).unwrap_or_default();
        let described = described_size(info["infotexts"][0].as_str().unwrap_or_default());
        let images = body["images"].as_array_mut().expect("an answer with lengths has images");
        for (image, length) in images.iter_mut().zip(list(&lengths)) {
            if image.as_str().is_some_and(|text| text.ends_with("(truncated)")) {
                let characters = length["chars"].as_f64().expect("a length");
                let (width, height) = described.expect("an image has a description");
                let density = characters / (f64::from(width) * f64::from(height));
                let (width, height) =
                    if (0.6..1.2).contains(&density) { (width, height) } else { (128, 128) };
                assert!(density < 1.2 && (width != 128 || characters < 22_000.0), "{characters} characters");
                *image = specimen(width, height).into();
            }
        }
    }
    Answer::Http { status, body: Bytes::from(body.to_string()) }
}

/// The size that a description names, as in `Size: 512x512`.
fn described_size(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("Size: ")?;
    let (width, height) = rest.split(',').next()?.split_once('x')?;
    Some((width.parse().ok()?, height.parse().ok()?))
}

/// A recorded JPEG whose frame header is set to another size, as base64.
pub(crate) fn specimen(width: u32, height: u32) -> String {
    let whole = &Recording::read("interrupt").exchanges[0].body["images"][0];
    let mut bytes = STANDARD.decode(whole.as_str().expect("an image")).expect("base64");
    // Walk the segments: a marker of two bytes, then a length that counts itself.
    let mut at = 2;
    while !(0xc0..=0xc2).contains(&bytes[at + 1]) {
        at += 2 + usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
    }
    let edge = |pixels: u32| u16::try_from(pixels).expect("an edge fits").to_be_bytes();
    bytes[at + 5..at + 7].copy_from_slice(&edge(height));
    bytes[at + 7..at + 9].copy_from_slice(&edge(width));
    STANDARD.encode(bytes)
}
