//! What tells two runs apart whose settings and headers are the same.

use xxhash_rust::xxh3::Xxh3;

use crate::error::Result;
use crate::format::Recipe;
use crate::plan::{Plan, PlanEntry};
use crate::source::Source;

/// A hash of what tensors get, as far as the settings alone do not say it.
pub(super) fn settled(plan: &Plan) -> String {
    let mut hash = Xxh3::new();
    for entry in &plan.entries {
        let PlanEntry {
            tensor,
            recipe,
            min_cosine,
            ..
        } = entry;
        let recipe = recipe.map_or("None".to_owned(), described);
        hash.update(format!("{} {recipe} {min_cosine}\n", tensor.name).as_bytes());
    }
    hash.update(format!("{:?}", plan.room).as_bytes());
    format!("{:016x}", hash.digest())
}

/// A recipe as it goes into that hash. Folders have it, so it does not follow how the code is
/// written.
fn described(recipe: Recipe) -> String {
    let Recipe {
        encoding,
        method,
        gain,
        scales,
    } = recipe;
    let format = recipe.format();
    match (encoding.scheme(), encoding.group_size()) {
        (Some(scheme), Some(size)) => format!(
            "Some(Recipe {{ format: {format:?}, scheme: {scheme:?}, group_size: GroupSize({size}), \
             method: {method:?}, gain: {gain:?}, scales: {scales:?} }})"
        ),
        _ => format!("Some(Recipe {{ format: {format:?}, method: {method:?}, gain: {gain:?} }})"),
    }
}

/// A hash of some of the values, spread over the model: headers say nothing of them. Empty for a
/// source that is unpacked to be read.
pub(super) fn sample(source: &dyn Source) -> Result<String> {
    const TENSORS: usize = 64;
    const BYTES: usize = 4 << 10;
    if source.in_turn() {
        return Ok(String::new());
    }
    let mut hash = Xxh3::new();
    let mut values = vec![0; BYTES];
    let tensors = source.tensors();
    for i in 0..tensors.len().min(TENSORS) {
        let index = i * tensors.len() / tensors.len().min(TENSORS);
        let bytes = tensors[index].bytes().unwrap_or(0);
        let values = &mut values[..bytes.min(BYTES)];
        source.read(index, (bytes - values.len()) / 2, values)?;
        hash.update(values);
    }
    Ok(format!("{:016x}", hash.digest()))
}
