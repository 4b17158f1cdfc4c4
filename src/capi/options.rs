//! How calls that work for a while go about it, and what they tell meanwhile.

use std::ffi::{CString, c_char, c_void};

use super::guard::{Fault, read, versioned};
use crate::plan::Config;
use crate::run::{Level, Options, Progress, Share};

/// How far a run has come.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_progress {
    /// sizeof(aq_progress) in the library.
    pub struct_size: u32,
    /// Bytes dealt with.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// How much a message matters.
pub type aq_log_level = i32;
/// Good to know.
pub const AQ_LOG_INFO: aq_log_level = 1;
/// Hardly meant.
pub const AQ_LOG_WARNING: aq_log_level = 2;
/// For whoever started the run, and nothing is wrong: that it goes on with what is there.
pub const AQ_LOG_NOTICE: aq_log_level = 3;

/// Told how far a run has come, at least some 20 times a second, also where nothing is new; false
/// cancels.
pub type aq_progress_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, progress: *const aq_progress) -> bool>;

/// Told, in a line, what is worth telling: what a plan does that was hardly meant, tensors that
/// got something else than planned. False cancels.
pub type aq_log_fn = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        level: aq_log_level,
        message: *const c_char,
    ) -> bool,
>;

/// How a run goes about it; nothing here changes what tensors become. Start with
/// AQ_INIT(aq_run_options).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_run_options {
    /// sizeof(aq_run_options).
    pub struct_size: u32,
    /// Threads that work; 1 starts none. 0 is what the config says where there is one, and else
    /// all of the machine's.
    pub threads: u32,
    pub progress: aq_progress_fn,
    pub log: aq_log_fn,
    /// Passed to both.
    pub user_data: *mut c_void,
    /// Not 0: into a folder, goes on with the parts that are there already. That is the default; an
    /// output that is one file is refused with it.
    pub resume: u32,
    /// Into a folder: does the `part`-th (from 1) of `parts` shares of the work, for aq_merge.
    /// 0 of 0 is all of it.
    pub part: u32,
    pub parts: u32,
    /// Into a folder: bytes of planes after which a part ends; 0 is 128 MiB.
    pub part_bytes: u64,
    /// Not 0: into a folder, makes all parts anew, and removes those of an earlier run before, be it of
    /// another model or of other settings. No other run may be writing to the folder.
    pub restart: u32,
}

versioned!(aq_run_options {
    struct_size,
    threads,
    progress,
    log,
    user_data,
    resume,
    part,
    parts,
    part_bytes,
    restart
});

impl aq_run_options {
    /// The caller's options; NULL for the defaults.
    pub(super) unsafe fn read(options: *const Self) -> Result<Self, Fault> {
        if options.is_null() {
            return Ok(Self {
                struct_size: 0,
                threads: 0,
                progress: None,
                log: None,
                user_data: std::ptr::null_mut(),
                resume: 0,
                part: 0,
                parts: 0,
                part_bytes: 0,
                restart: 0,
            });
        }
        // SAFETY: as the caller's.
        unsafe { read(options, "options") }
    }

    /// With the threads of a config, unless it has its own.
    pub(super) fn or_threads_of(mut self, config: &Config) -> Self {
        if self.threads == 0 {
            self.threads = config.threads() as u32;
        }
        self
    }

    /// Calls `work` with options that call the caller's functions.
    pub(super) unsafe fn with<R>(
        self,
        work: impl FnOnce(Options<'_>) -> crate::error::Result<R>,
    ) -> Result<R, Fault> {
        let share = match (self.part, self.parts) {
            (0, 0) => None,
            (part, parts) => Some(Share::new(part as usize, parts as usize)?),
        };
        let user_data = self.user_data;
        let mut progress = |progress: Progress| {
            let told = aq_progress {
                struct_size: size_of::<aq_progress>() as u32,
                done: progress.done as u64,
                total: progress.total as u64,
            };
            // SAFETY: the caller's function, called as the header says.
            self.progress
                .is_none_or(|tell| unsafe { tell(user_data, &told) })
        };
        let mut log = |level: Level, message: &str| {
            let level = match level {
                Level::Info => AQ_LOG_INFO,
                Level::Warning => AQ_LOG_WARNING,
                Level::Notice => AQ_LOG_NOTICE,
            };
            let line = message.replace(char::is_control, "\u{FFFD}");
            let message = CString::new(line).unwrap_or_default();
            // SAFETY: as above.
            self.log
                .is_none_or(|tell| unsafe { tell(user_data, level, message.as_ptr()) })
        };
        let mut options = Options {
            threads: self.threads as usize,
            progress: Some(&mut progress),
            log: Some(&mut log),
            resume: self.resume != 0,
            restart: self.restart != 0,
            share,
            ..Options::default()
        };
        if self.part_bytes > 0 {
            options.part_bytes = usize::try_from(self.part_bytes).unwrap_or(usize::MAX);
        }
        Ok(work(options)?)
    }
}
