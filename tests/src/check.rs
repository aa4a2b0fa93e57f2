//! What must hold of every job, whoever watched it.

use std::io::Cursor;

use serde_json::Value;

use crate::watcher::Told;

/// Checks one job's messages as one watcher saw them: in order, monotone, exactly one end.
pub fn messages(job_id: &str, told: &[Told]) {
    let types: Vec<&str> =
        told.iter().map(|told| told.message["type"].as_str().unwrap_or_default()).collect();
    assert!(!told.is_empty(), "nothing was told of {job_id}");
    let ends = types.iter().filter(|kind| **kind == "generation_complete").count();
    assert_eq!(ends, 1, "{job_id} ends once: {types:?}");
    assert_eq!(types.last(), Some(&"generation_complete"), "nothing follows the end of {job_id}: {types:?}");
    let mut last: Option<(u64, u64)> = None;
    let mut progress = (0, 0.0);
    for told in told {
        let data = &told.message["data"];
        assert_eq!(data["job_id"], job_id);
        let place = (number(&data["attempt"]), number(&data["seq"]));
        assert!(last.is_none_or(|last| last < place), "{job_id}: {place:?} after {last:?}");
        last = Some(place);
        if told.message["type"] == "progress_update" {
            let now = data["progress"].as_f64().expect("progress is a number");
            assert!((0.0..1.0).contains(&now), "{job_id}: progress {now} before the end");
            if progress.0 == place.0 {
                assert!(now >= progress.1, "{job_id}: progress falls from {} to {now}", progress.1);
            }
            progress = (place.0, now);
            assert!(number(&data["current_step"]) <= number(&data["total_steps"]), "{data}");
        }
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is a whole number"))
}

/// Decodes a picture to its pixels, and returns its size. Panics if it does not decode.
pub fn decoded_size(bytes: &[u8]) -> (u32, u32) {
    if matches!(imagesize::image_type(bytes), Ok(imagesize::ImageType::Png)) {
        let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().expect("a PNG has a header");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a picture fits into memory")];
        let frame = reader.next_frame(&mut pixels).expect("the PNG decodes");
        return (frame.width, frame.height);
    }
    let mut decoder = zune_jpeg::JpegDecoder::new(zune_jpeg::zune_core::bytestream::ZCursor::new(bytes));
    decoder.decode().expect("the JPEG decodes");
    let (width, height) = decoder.dimensions().expect("a decoded picture has a size");
    (u32::try_from(width).expect("small"), u32::try_from(height).expect("small"))
}
