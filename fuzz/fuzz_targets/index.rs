//! The index of a sharded model, beside two shards with the tensors `a` and `b`.
#![no_main]

use arrowquant_fuzz::end_on_panic;
use libfuzzer_sys::fuzz_target;

fn shard(tensor: &str) -> Vec<u8> {
    let header = format!(r#"{{"{tensor}":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}}"#);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend([1, 2]);
    file
}

fuzz_target!(
    init: {
        end_on_panic();
        for name in ["a", "b"] {
            let path = arrowquant_fuzz::folder().join(format!("{name}.safetensors"));
            std::fs::write(path, shard(name)).expect("room for a file");
        }
    },
    |text: &[u8]| {
        let index = arrowquant_fuzz::folder().join("model.safetensors.index.json");
        std::fs::write(&index, text).expect("room for a file");
        let _ = arrowquant::source::open(&index);
    }
);
