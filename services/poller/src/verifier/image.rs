//! Finds the images of an answer and judges each by its own bytes.

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use imagesize::ImageType;

use super::answer::Body;
use crate::plan::Size;

/// Some encoders leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// A whole image of the right size.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// The file as the server made it.
    pub bytes: Bytes,
    /// `image/jpeg`, `image/png` or `image/webp`, from the bytes.
    pub content_type: &'static str,
    /// Usual file extension, without a dot.
    pub extension: &'static str,
    /// Pixels across, from the bytes.
    pub width: u32,
    /// Pixels down, from the bytes.
    pub height: u32,
    /// Seed, where the answer says which belongs to this image.
    pub seed: Option<i64>,
}

/// What the image list of an answer holds.
#[derive(Debug)]
pub(super) struct Found {
    /// Whole and of the right size, in order.
    pub(super) right: Vec<Image>,
    /// Sizes of those whole and not of the right size: previews, and grids ahead of the images.
    pub(super) wrong: Vec<Size>,
    /// Entries that are no whole image.
    pub(super) broken: usize,
    /// All entries.
    pub(super) total: usize,
}

impl Found {
    pub(super) fn search(body: &Body, sizes: &[Size]) -> Self {
        let entries = body.images();
        let seeds = body.seeds(entries.len());
        let mut found = Self { right: Vec::new(), wrong: Vec::new(), broken: 0, total: entries.len() };
        for (index, entry) in entries.iter().enumerate() {
            let Some(image) = entry.as_str().and_then(decode).and_then(inspect) else {
                found.broken += 1;
                continue;
            };
            let size = Size { width: image.width, height: image.height };
            if sizes.is_empty() || sizes.contains(&size) {
                let seed = seeds.get(index).copied().flatten();
                found.right.push(Image { seed, ..image });
            } else {
                found.wrong.push(size);
            }
        }
        found
    }
}

fn decode(text: &str) -> Option<Bytes> {
    let text = match text.split_once(',') {
        Some((head, data)) if head.starts_with("data:") => data,
        _ => text,
    };
    BASE64.decode(text.trim()).ok().map(Bytes::from)
}

/// Reads type and size, and checks that the end is there.
fn inspect(bytes: Bytes) -> Option<Image> {
    let (content_type, extension, whole) = match imagesize::image_type(&bytes).ok()? {
        ImageType::Jpeg => ("image/jpeg", "jpg", is_whole_jpeg(&bytes)),
        ImageType::Png => ("image/png", "png", is_whole_png(&bytes)),
        ImageType::Webp => ("image/webp", "webp", is_whole_webp(&bytes)),
        _ => return None,
    };
    let size = imagesize::blob_size(&bytes).ok().filter(|_| whole)?;
    let (width, height) = (u32::try_from(size.width).ok()?, u32::try_from(size.height).ok()?);
    (width > 0 && height > 0).then_some(Image { bytes, content_type, extension, width, height, seed: None })
}

/// Ends in the marker for it; some writers fill up with zeros.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes[..end].ends_with(&[0xff, 0xd9])
}

/// Its chunks lead to the last one.
fn is_whole_png(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((head, tail)) = rest.split_first_chunk::<8>() {
        let [a, b, c, d, kind @ ..] = *head;
        // Four more bytes of checksum follow the data.
        let length = u64::from(u32::from_be_bytes([a, b, c, d])) + 4;
        let Some(next) = usize::try_from(length).ok().and_then(|length| tail.get(length..)) else {
            return false;
        };
        if kind == *b"IEND" {
            return true;
        }
        rest = next;
    }
    false
}

/// Is as long as its header says.
fn is_whole_webp(bytes: &[u8]) -> bool {
    let Some(length) = bytes.get(4..8).and_then(|length| <[u8; 4]>::try_from(length).ok()) else {
        return false;
    };
    u64::from(u32::from_le_bytes(length)) + 8 <= bytes.len() as u64
}
