//! Identifies files that are not weights although weights were expected, and says where the weights
//! are: by the first bytes, because the name was misleading.

use std::path::{Path, PathBuf};

use super::MAX_HEADER;
use super::file::SourceFile;
use crate::error::{Error, Result};

/// Number of first bytes that are examined.
const START: usize = 4096;

/// The most letters of a text that a message shows.
const SHOWN: usize = 60;

/// The most models of a Hugging Face cache that a message lists.
const NAMED: usize = 5;

/// Files identified by their beginning, with advice on how to get weights.
const MAGICS: &[(&[u8], &str)] = &[
    (
        b"version https://git-lfs.github.com/",
        "a git-lfs pointer, which stands for a file that was not downloaded: run `git lfs pull` \
         in its repository",
    ),
    (b"GGUF", "a GGUF file: quantize it by itself"),
    (b"PAR1", "a Parquet file: quantize it by itself"),
    (
        &[0x00, 0x05, 0x16, 0x07],
        "an AppleDouble file, which has macOS metadata for the file with the same name \
         without ._: use that one",
    ),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it first"),
    (b"\xfd7zXZ\0", "compressed by xz: unpack it first"),
    (b"BZh", "compressed by bzip2: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file: convert it to safetensors first"),
    (
        b"\x93NUMPY",
        "an array of numpy: convert it to safetensors first",
    ),
];

/// Identifies a file that is not safetensors, GGUF or Parquet; `None` if nothing matches, or if it
/// begins like a safetensors file.
///
/// # Errors
/// The file cannot be read.
pub(super) fn is(file: &SourceFile) -> Result<Option<String>> {
    let mut start = vec![0; file.bytes().min(START as u64) as usize];
    file.read_header(&mut start, 0)?;
    Ok(told_by(&start, file.bytes()))
}

/// Makes an error for a file that is not as `expected`: what it is, or else `reason`.
pub(super) fn refuse(file: &SourceFile, expected: &str, reason: impl FnOnce() -> String) -> Error {
    match is(file) {
        Ok(Some(what)) => Error::file(file.path(), format!("not {expected} but {what}")),
        Ok(None) => Error::file(file.path(), format!("not {expected}: {}", reason())),
        Err(error) => error,
    }
}

fn told_by(start: &[u8], bytes: u64) -> Option<String> {
    if bytes == 0 {
        return Some("an empty file: download it again".to_owned());
    }
    if let Some((length, [b'{', ..])) = start.split_first_chunk()
        && (2..=MAX_HEADER).contains(&u64::from_le_bytes(*length))
    {
        return None;
    }
    if let Some((_, what)) = MAGICS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some((*what).to_owned());
    }
    if start.iter().all(|&byte| byte == 0) {
        let zeros = "a file that begins with zeros: space was allocated for it, but its download is \
                     incomplete";
        return Some(zeros.to_owned());
    }
    if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
        // The first name in a checkpoint is `archive/data.pkl` or similar.
        let pickled = start.windows(8).any(|name| name == b"data.pkl");
        let pickles = "a zip archive of pickles, which is a checkpoint of PyTorch (.ckpt, .pt, \
                       .bin): convert it to safetensors first";
        let other = "a zip archive: unpack it first, or convert it to safetensors if it is a \
                     checkpoint";
        return Some(if pickled { pickles } else { other }.to_owned());
    }
    let what = match start {
        [0x80, 2..=5, ..] => {
            "a pickle, which is a checkpoint of PyTorch (.ckpt, .pt, .bin): convert it to \
             safetensors first"
        }
        // The version of the format, and the name of the writer.
        [0x08, 1..=32, 0x12, ..] => "an ONNX model: start from safetensors",
        _ if start.get(257..262) == Some(b"ustar") => "a tar archive: unpack it first",
        _ => return text(start).map(kind_of_text),
    };
    Some(what.to_owned())
}

/// Returns the beginning of a file as text, without a character cut at its end; `None` if it is not
/// text.
fn text(start: &[u8]) -> Option<&str> {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&start[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let odd = |c: char| c.is_control() && !c.is_ascii_whitespace();
    (!text.is_empty() && !text.contains(odd)).then_some(text)
}

fn kind_of_text(text: &str) -> String {
    let text = text.trim_start();
    let begins = |with: &str| {
        let start = text.get(..with.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(with))
    };
    let kind = if begins("<!doctype html") || begins("<html") || begins("<head") {
        "an HTML page, perhaps a login page: download the file again"
    } else if begins("<?xml") || begins("<Error>") {
        "XML text, perhaps a server's reply instead of the file"
    } else if begins("{") || begins("[") {
        "JSON text, perhaps a server's reply instead of the file"
    } else {
        "text"
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let words = words.join(" ");
    let mut letters = words.chars();
    let shown: String = letters.by_ref().take(SHOWN).collect();
    let more = if letters.next().is_some() { "…" } else { "" };
    format!("{kind}; it begins: {shown}{more}")
}

/// Finds the weights of a Hugging Face cache, given a folder above them.
pub(super) fn cache(folder: &Path) -> Option<String> {
    let snapshots = folder.join("snapshots");
    if snapshots.is_dir() && (folder.join("blobs").is_dir() || folder.join("refs").is_dir()) {
        let main = std::fs::read_to_string(folder.join("refs/main")).ok();
        let main = main.map(|commit| snapshots.join(commit.trim()));
        let commits = subfolders(&snapshots);
        let weights = match (main.filter(|commit| commit.is_dir()), &commits[..]) {
            (Some(main), _) => main,
            (None, [only]) => only.clone(),
            (None, []) => {
                let reason = "the cache of a repository without a downloaded snapshot";
                return Some(reason.to_owned());
            }
            (None, several) => {
                let names = several.iter().map(|path| path.display().to_string());
                let names: Vec<String> = names.take(NAMED).collect();
                let names = names.join(", ");
                return Some(format!(
                    "the cache of a repository, not a snapshot of it: use one of {names}"
                ));
            }
        };
        let weights = weights.display();
        return Some(format!(
            "the cache of a repository; its weights are in {weights}: use that"
        ));
    }
    let repositories = subfolders(folder).into_iter().filter_map(|path| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        name.starts_with("models--").then_some(name)
    });
    let repositories: Vec<String> = repositories.take(NAMED).collect();
    let first = repositories.first()?;
    Some(format!(
        "a cache of repositories ({}): use a snapshot of one, such as {}",
        repositories.join(", "),
        folder.join(first).join("snapshots").display()
    ))
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(start: &[u8]) -> Option<String> {
        told_by(&start[..start.len().min(START)], start.len() as u64)
    }

    #[test]
    fn files_are_told_by_their_first_bytes() {
        let tar: Vec<u8> = [b"model/\0".as_slice(), &[b'0'; 250], b"ustar\x0000"].concat();
        let cases: [(&[u8], &str); 24] = [
            (b"", "an empty file"),
            (&[0; 8], "begins with zeros"),
            (&[0; 10_000], "begins with zeros"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:",
                "`git lfs pull`",
            ),
            (b"<!DOCTYPE html><html>", "an HTML page"),
            (b"\xef\xbb\xbf\r\n <HTML lang=\"en\">", "an HTML page"),
            (b"<?xml version=\"1.0\"?><Error>", "XML text"),
            (
                b"{\"error\":\n \"Unauthorized\"}",
                "JSON text, perhaps a server's reply instead of the file; it begins: \
                 {\"error\": \"Unauthorized\"}",
            ),
            (b"Entry not found", "text; it begins: Entry not found"),
            (b"caf\xc3", "text; it begins: caf"),
            (b"PK\x03\x04\x00\x00\x08archive/data.pklFB", "of pickles"),
            (b"PK\x03\x04\x00\x00\x08readme.txt", "a zip archive: unpack"),
            (b"\x80\x02}q\x00.", "a pickle"),
            (b"\x80\x04\x95", "a pickle"),
            (&[0, 5, 0x16, 7, 0, 2, 0, 0], "an AppleDouble file"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (b"\x28\xb5\x2f\xfd\0", "zstd"),
            (b"\xfd7zXZ\0", "xz"),
            (b"7z\xbc\xaf\x27\x1c", "7z"),
            (&tar, "a tar archive"),
            (b"\x08\x08\x12\x07pytorch", "an ONNX model"),
            (b"\x89HDF\r\n", "an HDF5 file"),
            (b"\x93NUMPY\x01\0", "numpy"),
            (b"GGUF\x03\0\0\0", "a GGUF file"),
        ];
        for (start, part) in cases {
            let told = told(start).unwrap_or_default();
            assert!(told.contains(part), "{start:?}: {told}");
        }
        let long = told("x".repeat(5000).as_bytes()).unwrap();
        assert!(
            long.ends_with(&format!(" {}…", "x".repeat(SHOWN))),
            "{long}"
        );
    }

    #[test]
    fn what_may_be_a_safetensors_file_is_told_as_nothing() {
        // Headers whose lengths begin like a pickle, gzip or an ONNX model.
        for length in [0x280u64, 0x8b1f, 0x120808] {
            let file = [&length.to_le_bytes(), b"{\"a\": 1}".as_slice()].concat();
            assert_eq!(told(&file), None, "{length:x}");
        }
        assert_eq!(told(&[0xFF; 100]), None);
        assert_eq!(told(b"\x01\x02 text with odd letters"), None);
        // Mostly zeros, but not the first bytes.
        assert_eq!(told(&[7, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
