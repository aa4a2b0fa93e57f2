//! Input images: decoded on accept, kept by content, referred to by `input:<id>`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use imagesize::ImageType;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use sha2::{Digest as _, Sha256};
use stepcast_shared::job::input_key;

use crate::db::inputs::Input;

/// Why bytes are not an image that SD.Next can begin from.
#[derive(Debug, thiserror::Error)]
pub enum NotAnImage {
    /// Not base64.
    #[error("this is neither base64 nor `input:<id>`")]
    NotBase64,
    /// No known picture format, or a broken one.
    #[error("this is not a JPEG, PNG or WebP image")]
    UnknownFormat,
}

/// Decodes an image sent inline: base64, with or without a `data:` prefix.
pub fn decode_inline(text: &str) -> Result<Bytes, NotAnImage> {
    let text = match text.strip_prefix("data:") {
        Some(uri) => uri.split_once(";base64,").ok_or(NotAnImage::NotBase64)?.1,
        None => text,
    };
    STANDARD.decode(text.trim()).map(Bytes::from).map_err(|_| NotAnImage::NotBase64)
}

/// Reads what an image is from its bytes.
pub fn inspect(bytes: &[u8]) -> Result<Input, NotAnImage> {
    let content_type = match imagesize::image_type(bytes) {
        Ok(ImageType::Jpeg) => "image/jpeg",
        Ok(ImageType::Png) => "image/png",
        Ok(ImageType::Webp) => "image/webp",
        _ => return Err(NotAnImage::UnknownFormat),
    };
    let size = imagesize::blob_size(bytes).map_err(|_| NotAnImage::UnknownFormat)?;
    let side = |pixels: usize| i64::try_from(pixels).map_err(|_| NotAnImage::UnknownFormat);
    Ok(Input {
        id: hex(&Sha256::digest(bytes)),
        content_type,
        bytes: side(bytes.len())?,
        width: side(size.width)?,
        height: side(size.height)?,
    })
}

/// Stores an image under its content's hash; storing it again changes nothing.
pub async fn store(store: &dyn ObjectStore, input: &Input, bytes: Bytes) -> object_store::Result<()> {
    store.put(&input_key(&input.id).into(), PutPayload::from_bytes(bytes)).await.map(drop)
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
