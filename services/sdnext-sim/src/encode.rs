//! Pixels to files, with the description where the recorded server puts it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

use crate::picture::Pixels;

/// File formats that are really written; the others that the server offers are answered with the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Jpeg,
    Png,
}

impl Format {
    /// The format that option `samples_format` means.
    pub(crate) fn from_option(name: &str) -> Self {
        if name.eq_ignore_ascii_case("png") { Self::Png } else { Self::Jpeg }
    }

    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
        }
    }

    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
        }
    }
}

/// Encodes `pixels`; `description` goes into the file's metadata.
pub(crate) fn encode(pixels: &Pixels, format: Format, description: Option<&str>) -> Vec<u8> {
    match format {
        Format::Jpeg => jpeg(pixels, description),
        Format::Png => png(pixels, description),
    }
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Decodes what a client sent as an image, with or without the head of a data URI.
pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let bare = text.split_once(";base64,").map_or(text, |(_, bare)| bare);
    STANDARD.decode(bare).ok()
}

fn jpeg(pixels: &Pixels, description: Option<&str>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 90);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    if let Some(description) = description {
        // A text that does not fit its segment is left out, as the picture matters more.
        let _ = encoder.add_app_segment(1, &exif(description));
    }
    let side = |length: u32| u16::try_from(length).unwrap_or(u16::MAX);
    encoder
        .encode(&pixels.rgb, side(pixels.width), side(pixels.height), ColorType::Rgb)
        .expect("the buffer has the size that it says, and no side is longer than a job may ask for");
    bytes
}

fn png(pixels: &Pixels, description: Option<&str>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, pixels.width, pixels.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::Fast);
    if let Some(description) = description {
        encoder
            .add_itxt_chunk("parameters".to_owned(), description.to_owned())
            .expect("the keyword is short, and nothing is written yet");
    }
    let mut writer = encoder.write_header().expect("memory does not fail");
    writer.write_image_data(&pixels.rgb).expect("the buffer has the size that it says");
    drop(writer);
    bytes
}

/// An EXIF segment that holds one `UserComment`, big-endian, in UTF-16.
fn exif(description: &str) -> Vec<u8> {
    let text: Vec<u8> = description.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let length = u32::try_from(text.len() + 8).unwrap_or(u32::MAX);
    let mut bytes = b"Exif\0\0MM\0\x2a\0\0\0\x08".to_vec();
    bytes.extend(b"\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x1a\0\0\0\0");
    bytes.extend(b"\0\x01\x92\x86\0\x07");
    bytes.extend(length.to_be_bytes());
    bytes.extend(b"\0\0\0\x28UNICODE\0");
    bytes.extend(text);
    bytes
}

#[cfg(test)]
mod tests {
    use super::{Format, base64, decode_base64, encode};
    use crate::picture::Scene;

    #[test]
    fn files_decode_at_their_size() {
        let pixels = Scene::new("a cat", 1, 0).draw(72, 40);
        for format in [Format::Jpeg, Format::Png] {
            let bytes = encode(&pixels, format, Some("a cat\nSteps: 4"));
            let size = imagesize::blob_size(&bytes).expect("a known format");
            assert_eq!((size.width, size.height), (72, 40), "{format:?}");
        }
        let bytes = encode(&pixels, Format::Jpeg, Some("a cat"));
        let decoded = zune_jpeg::JpegDecoder::new(std::io::Cursor::new(&bytes)).decode().expect("decodes");
        assert_eq!(decoded.len(), 72 * 40 * 3);
        assert!(base64(&bytes).starts_with("/9j/4AAQSkZJRgAB"), "recorded images begin like this");
    }

    #[test]
    fn data_uris_are_accepted() {
        assert_eq!(decode_base64("data:image/png;base64,AAEC"), Some(vec![0, 1, 2]));
        assert_eq!(decode_base64("AAEC"), Some(vec![0, 1, 2]));
        assert_eq!(decode_base64("!"), None);
    }
}
