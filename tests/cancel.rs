//! Progress arrives in small steps, and cancelled work stops and leaves nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arrowquant::error::{Error, Result};
use arrowquant::model::Model;
use arrowquant::run::{self, Options, Progress};
use arrowquant::source::{self, Source, SourceId};
use arrowquant::tensor::TensorInfo;
use tempfile::TempDir;

use crate::common::*;

/// The most bytes processed between two callbacks, on one thread.
const STEP: usize = 8 << 20;

/// The part of a long tensor processed at once: 262 rows of 1000 weights.
const PIECES: usize = 4;

/// A model of one tensor of several pieces and kept ones of several steps, and its quantized file.
struct Files {
    folder: TempDir,
    input: PathBuf,
    packed: PathBuf,
    output: PathBuf,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kept = (0..20 << 20).map(|i: u32| ((i * 7) >> 4) as u8).collect();
        let tensors = [
            bf16_tensor("a.weight", &[1000, 1000], &noise(1, 1_000_000)),
            ("table".to_owned(), "U8", vec![20, 1 << 20], kept),
            // One row.
            f32_tensor("bias", &[3 << 20], &noise(2, 3 << 20)),
        ];
        let input = folder.path().join("m.safetensors");
        std::fs::write(&input, safetensors(&tensors)).unwrap();
        let packed = folder.path().join("m.parquet");
        quantize(&input, &packed, &[("method", "minmax")]).unwrap();
        std::fs::create_dir(folder.path().join("out")).unwrap();
        let output = folder.path().join("out/new");
        Self {
            folder,
            input,
            packed,
            output,
        }
    }

    fn names(&self) -> Vec<String> {
        names_in(&self.folder.path().join("out"))
    }

    /// Runs one of [`WORKS`] with the original as `source`.
    fn work(&self, name: &str, source: &dyn Source, options: Options<'_>) -> Result<()> {
        let model = || Model::open(&self.packed).unwrap();
        let output = |extension| self.output.with_extension(extension);
        match name {
            "quantize" => {
                let plan = run::plan(source, &config(&[("method", "minmax")])).unwrap();
                run::quantize(source, &plan, &output("parquet"), options).map(drop)
            }
            "verify" | "compare" => {
                let original = (name == "compare").then_some(source);
                let found = run::verify(&model(), original, None, options)?;
                assert_eq!(found.failures().count(), 0);
                Ok(())
            }
            _ => run::dequantize_file(&model(), &output("safetensors"), None, options),
        }
    }
}

const WORKS: [&str; 4] = ["quantize", "verify", "compare", "dequantize"];

#[test]
fn progress_comes_in_small_steps_up_to_the_total() {
    let files = Files::new();
    let source = source::open(&files.input).unwrap();
    for name in WORKS {
        for threads in [1, 2] {
            let mut seen: Vec<Progress> = Vec::new();
            let mut tell = |progress| {
                seen.push(progress);
                true
            };
            let options = Options {
                threads,
                progress: Some(&mut tell),
                ..Options::default()
            };
            files.work(name, source.as_ref(), options).unwrap();
            let last = *seen.last().unwrap();
            assert_eq!(last.done, last.total, "{name}");
            assert!(last.total >= 20 << 20, "{name}");
            let mut before = 0;
            for progress in seen {
                assert!(progress.done >= before && progress.total == last.total);
                // Other threads continue while the caller's thread does not call back.
                let step = progress.done - before;
                assert!(threads > 1 || step <= STEP, "{name}: {step} bytes at once");
                before = progress.done;
            }
        }
    }
}

#[test]
fn a_large_tensor_shows_progress_and_is_cancelled_midway_on_one_thread() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    let tensor = bf16_tensor("w", &[1000, 1000], &noise(1, 1_000_000));
    std::fs::write(&input, safetensors(&[tensor])).unwrap();
    let source = source::open(&input).unwrap();
    let plan = run::plan(source.as_ref(), &config(&[])).unwrap();
    let mut seen = Vec::new();
    let mut tell = |progress: run::Progress| {
        seen.push(progress.done);
        progress.done < 1_000_000
    };
    let options = Options {
        threads: 1,
        progress: Some(&mut tell),
        ..Options::default()
    };
    let output = folder.path().join("m.parquet");
    let error = run::quantize(source.as_ref(), &plan, &output, options).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    // Pieces of 262 rows of 2000 bytes.
    assert_eq!(seen, [524_000, 1_048_000]);
    assert_eq!(names_in(folder.path()), ["m.safetensors"]);
}

#[test]
fn work_that_is_told_to_stop_leaves_nothing() {
    let files = Files::new();
    let source = source::open(&files.input).unwrap();
    for name in WORKS {
        for threads in [1, 2] {
            for stop_at in 1.. {
                let mut calls = 0;
                let mut tell = |_| {
                    calls += 1;
                    calls < stop_at
                };
                let options = Options {
                    threads,
                    progress: Some(&mut tell),
                    ..Options::default()
                };
                let result = files.work(name, source.as_ref(), options);
                if calls < stop_at {
                    // The work had already finished.
                    result.unwrap();
                    assert!(threads > 1 || stop_at > PIECES, "{name}: {calls} calls");
                    break;
                }
                assert!(matches!(result, Err(Error::Cancelled)), "{name}");
                assert_eq!(calls, stop_at, "{name}: told after it was to stop");
                assert_eq!(files.names(), [""; 0], "{name}");
            }
            for name in files.names() {
                std::fs::remove_file(files.output.with_file_name(name)).unwrap();
            }
        }
    }
}

/// A source whose reads are slow after cancellation, and are counted then.
struct Watched {
    source: Box<dyn Source>,
    stop: AtomicBool,
    late: AtomicUsize,
}

impl Source for Watched {
    fn tensors(&self) -> &[TensorInfo] {
        self.source.tensors()
    }

    fn read(&self, index: usize, offset: usize, out: &mut [u8]) -> Result<()> {
        if self.stop.load(Ordering::SeqCst) {
            self.late.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(200));
        } else {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.source.read(index, offset, out)
    }

    fn path_of(&self, index: usize) -> &Path {
        self.source.path_of(index)
    }

    fn path(&self) -> &Path {
        self.source.path()
    }

    fn id(&self) -> SourceId {
        self.source.id()
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        self.source.metadata()
    }
}

#[test]
fn nothing_is_begun_after_work_was_told_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    let packed = folder.path().join("m.parquet");
    // 24 pieces in one tile.
    let tensor = bf16_tensor("a.weight", &[24, 1 << 18], &noise(1, 24 << 18));
    std::fs::write(&input, safetensors(&[tensor])).unwrap();
    let settings = [("method", "minmax")];
    quantize(&input, &packed, &settings).unwrap();
    for threads in [1, 2] {
        for compare in [false, true] {
            let source = Watched {
                source: source::open(&input).unwrap(),
                stop: AtomicBool::new(false),
                late: AtomicUsize::new(0),
            };
            let mut tell = |_| {
                source.stop.store(true, Ordering::SeqCst);
                false
            };
            let options = Options {
                threads,
                progress: Some(&mut tell),
                ..Options::default()
            };
            let result = match compare {
                true => run::verify(&Model::open(&packed).unwrap(), Some(&source), None, options)
                    .map(drop),
                false => {
                    let plan = run::plan(&source, &config(&settings)).unwrap();
                    let output = folder.path().join("new.parquet");
                    run::quantize(&source, &plan, &output, options).map(drop)
                }
            };
            assert!(matches!(result, Err(Error::Cancelled)));
            // Other threads may be about to read, and one more if the machine is busy.
            let late = source.late.load(Ordering::SeqCst);
            let most = if threads == 1 { 0 } else { 2 * threads };
            assert!(
                late <= most,
                "{late} reads after the stop, {threads} threads"
            );
            assert_eq!(names_in(folder.path()), ["m.parquet", "m.safetensors"]);
        }
    }
}
