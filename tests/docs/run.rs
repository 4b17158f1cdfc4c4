//! Runs the commands and snippets of a page, in a folder that looks like the repository's root.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::page::{Block, Page, alike, shown};
use crate::common::native::library_folder;
use crate::common::*;

/// The state while a page is followed from top to bottom.
pub struct Reader<'a> {
    page: &'a Page,
    folder: TempDir,
    /// Whether the page's script has run.
    scripted: bool,
    environment: HashMap<&'static str, OsString>,
}

impl<'a> Reader<'a> {
    pub fn new(page: &'a Page) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in names_in(root()) {
            if ![".git", "target"].contains(&name.as_str()) {
                std::os::unix::fs::symlink(root().join(&name), folder.path().join(name)).unwrap();
            }
        }
        let program = Path::new(env!("CARGO_BIN_EXE_arrowquant"))
            .parent()
            .unwrap();
        let mut path = vec![
            program.to_owned(),
            crate::python::python().parent().unwrap().to_owned(),
        ];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
        let include = root().join("include").into_os_string();
        let library = library_folder().as_os_str().to_owned();
        let environment = HashMap::from([
            ("PATH", std::env::join_paths(path).unwrap()),
            ("C_INCLUDE_PATH", include.clone()),
            ("CPLUS_INCLUDE_PATH", include),
            ("LIBRARY_PATH", library.clone()),
            ("LD_LIBRARY_PATH", library),
            // Programs are installed to, and looked up in, the home folder.
            ("HOME", folder.path().as_os_str().to_owned()),
            ("OPENBLAS_NUM_THREADS", "1".into()),
        ]);
        Self {
            page,
            folder,
            scripted: false,
            environment,
        }
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AQ_") {
                command.env_remove(name);
            }
        }
        command
            .current_dir(self.folder.path())
            .envs(&self.environment)
            .stdin(Stdio::null());
        command
    }

    fn place(&self, block: &Block) -> String {
        format!("{}:{}", self.page.path, block.line)
    }

    /// Runs a command that must succeed.
    fn succeed(&self, block: &Block, command: &mut Command) {
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}: {command:?}: {}\n{}{}",
            self.place(block),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Builds a program of C or C++ and runs it.
    fn program(&self, block: &Block) {
        let (compiler, standard) = match block.language.as_str() {
            "c" => ("cc", "-std=c11"),
            _ => ("c++", "-std=c++17"),
        };
        let source = self.write(&format!("snippet.{}", block.language), &block.text());
        let program = self.folder.path().join("snippet");
        let mut build = self.command(compiler);
        build
            .args([standard, "-Wall", "-Wextra", "-Werror", "-O1"])
            .arg(source)
            .arg("-o")
            .arg(&program)
            .args(["-larrowquant", "-lm", "-pthread"]);
        self.succeed(block, &mut build);
        self.succeed(block, &mut self.command(program));
    }

    /// Runs all Python code of the page as one script.
    fn script(&mut self, block: &Block) {
        if std::mem::replace(&mut self.scripted, true) {
            return;
        }
        let blocks = self.page.blocks();
        let parts = blocks
            .iter()
            .filter(|block| block.language == "python" && block.name.is_none());
        let script: String = parts.map(Block::text).collect();
        let script = self.write("page.py", &script);
        let mut python = self.command("python");
        self.succeed(block, python.arg("-W").arg("error").arg(script));
    }

    fn query(&self, block: &Block) {
        let mut python = self.command("python");
        let text = "import duckdb, sys; print(duckdb.sql(sys.argv[1]))";
        self.succeed(block, python.args(["-c", text, &block.text()]));
    }

    fn console(&self, block: &Block) {
        for shown in shown(block) {
            let mut shell = self.command("sh");
            let output = shell.args(["-c", &shown.command]).output().unwrap();
            let found = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            let lines: Vec<&str> = found.lines().collect();
            assert!(
                alike(&shown.printed, &lines),
                "{}: {}\nprints\n{found}",
                self.place(block),
                shown.command
            );
        }
    }

    pub fn follow(&mut self, block: &Block) {
        let language = block.language.as_str();
        match (language, block.name.as_deref()) {
            ("sh", Some("elsewhere")) => elsewhere(&self.place(block), block),
            ("c", Some("elsewhere")) => {
                let header = root().join("include/arrowquant.h");
                let header = std::fs::read_to_string(header).unwrap();
                assert!(header.contains(&block.text()), "{}", self.place(block));
            }
            (_, Some(name)) => drop(self.write(name, &block.text())),
            ("text", None) => {}
            ("console", None) => self.console(block),
            ("sh", None) => self.succeed(block, self.command("sh").args(["-ec", &block.text()])),
            ("python", None) => self.script(block),
            ("c" | "cpp", None) => self.program(block),
            ("sql", None) => self.query(block),
            ("yaml", None) => {
                let config = self.write("snippet.yaml", &block.text());
                let mut plan = self.command("arrowquant");
                plan.args(["plan", "examples/models/dit-digits.safetensors", "--config"]);
                self.succeed(block, plan.arg(config));
            }
            ("rust", None) => in_the_crate(&self.place(block), block),
            _ => panic!("{}: a block of '{language}'", self.place(block)),
        }
    }
}

/// Returns all text files of folders, concatenated.
fn texts(folders: &[&str]) -> String {
    let mut all = String::new();
    for folder in folders {
        let folder = root().join(folder);
        for name in names_in(&folder) {
            all += &std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        }
    }
    all
}

/// Checks commands that others run: those of CI and of benchmarks.
fn elsewhere(place: &str, block: &Block) {
    let (ci, benches) = (texts(&[".ci", ".github/workflows"]), texts(&["benches"]));
    for line in &block.lines {
        let command = line.split(" #").next().unwrap().trim();
        let mut words = command.split_whitespace();
        match (words.next(), words.next()) {
            (Some("python"), Some(script)) if script.starts_with("benches/") => {
                assert!(root().join(script).exists(), "{place}: {script}");
                for flag in words.filter(|word| word.starts_with("--")) {
                    assert!(benches.contains(&format!("\"{flag}\"")), "{place}: {flag}");
                }
            }
            (None, _) => {}
            _ => assert!(ci.contains(command), "{place}: no script runs: {command}"),
        }
    }
}

/// Checks that the crate's documentation, whose examples are compiled, contains the block.
fn in_the_crate(place: &str, block: &Block) {
    let library = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let lines = library.lines().filter_map(|line| line.strip_prefix("//!"));
    let lines = lines.map(|line| line.strip_prefix(' ').unwrap_or(line));
    let shown: Vec<&str> = lines.filter(|line| !line.starts_with("# ")).collect();
    assert!(
        shown.join("\n").contains(block.text().trim_end()),
        "{place}: not in src/lib.rs"
    );
}
