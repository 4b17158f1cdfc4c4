//! Changes safetensors files so that the length before the header stays right.

use serde_json::Value;

use crate::Random;

/// The file changed, when it is one: a value of the header, the header's text or the values.
pub fn mutate(
    file: &[u8],
    random: &mut Random,
    bytes: &mut dyn FnMut(&mut Vec<u8>),
) -> Option<Vec<u8>> {
    let length = u64::from_le_bytes(file.get(..8)?.try_into().ok()?);
    let text = file.get(8..)?.get(..usize::try_from(length).ok()?)?;
    let mut values = file[8 + text.len()..].to_vec();
    let mut header = text.to_vec();
    match random.below(4) {
        0 => bytes(&mut header),
        1 => bytes(&mut values),
        _ => {
            let mut json: Value = serde_json::from_slice(text).ok()?;
            change(&mut json, random, bytes);
            header = json.to_string().into_bytes();
        }
    }
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(values);
    Some(file)
}

/// Changes one value in a JSON tree.
pub fn change(json: &mut Value, random: &mut Random, bytes: &mut dyn FnMut(&mut Vec<u8>)) {
    match json {
        Value::Object(map) if !map.is_empty() => {
            let key = map
                .keys()
                .nth(random.below(map.len()))
                .cloned()
                .unwrap_or_default();
            match random.below(6) {
                0 => drop(map.remove(&key)),
                1 => {
                    let mut name = key.clone().into_bytes();
                    bytes(&mut name);
                    let value = map[&key].clone();
                    map.insert(String::from_utf8_lossy(&name).into_owned(), value);
                }
                _ => change(&mut map[&key], random, bytes),
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let at = random.below(list.len());
            match random.below(6) {
                0 => drop(list.remove(at)),
                1 => {
                    let copies = vec![list[at].clone(); 1 << random.below(8)];
                    list.extend(copies);
                }
                _ => change(&mut list[at], random, bytes),
            }
        }
        Value::Number(number) => {
            let value = random.number(number.as_i64().unwrap_or(0));
            *json = Value::from(value.unsigned_abs());
        }
        Value::String(text) => {
            let mut changed = std::mem::take(text).into_bytes();
            bytes(&mut changed);
            *text = String::from_utf8_lossy(&changed).into_owned();
        }
        _ => *json = serde_json::json!({"a": [0, "", null]}),
    }
}
