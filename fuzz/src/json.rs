//! Changes JSON texts so that they stay JSON, most of the time.

use crate::{Random, safetensors};

/// The text changed, when it is JSON.
pub fn mutate(
    text: &[u8],
    random: &mut Random,
    bytes: &mut dyn FnMut(&mut Vec<u8>),
) -> Option<Vec<u8>> {
    if random.below(4) == 0 {
        let mut text = text.to_vec();
        bytes(&mut text);
        return Some(text);
    }
    let mut json = serde_json::from_slice(text).ok()?;
    safetensors::change(&mut json, random, bytes);
    Some(json.to_string().into_bytes())
}
