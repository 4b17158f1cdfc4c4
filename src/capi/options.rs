//! Options of long calls: threads, progress, log.

use std::ffi::{CString, c_char, c_void};

use super::guard::{Fault, read, versioned};
use crate::plan::Config;
use crate::run::{Level, Options, Progress, Share};

/// Progress of a run.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_progress {
    /// sizeof(aq_progress) in the library.
    pub struct_size: u32,
    /// Bytes processed.
    pub done: u64,
    /// Bytes in total.
    pub total: u64,
}

/// Importance of a log message.
pub type aq_log_level = i32;
/// Information.
pub const AQ_LOG_INFO: aq_log_level = 1;
/// A warning: probably not what was intended.
pub const AQ_LOG_WARNING: aq_log_level = 2;
/// A notice for the user, not a problem: for example, that the run continues with existing parts.
pub const AQ_LOG_NOTICE: aq_log_level = 3;

/// Receives the progress of a run, at least about 20 times a second, even if nothing changed.
/// Returning false cancels.
pub type aq_progress_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, progress: *const aq_progress) -> bool>;

/// Receives one-line notices and warnings, such as a rule that matches no tensor, or a tensor that
/// got another format than planned. Returning false cancels.
pub type aq_log_fn = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        level: aq_log_level,
        message: *const c_char,
    ) -> bool,
>;

/// How a run works; no option changes how tensors are quantized. Start with
/// AQ_INIT(aq_run_options).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_run_options {
    /// sizeof(aq_run_options).
    pub struct_size: u32,
    /// Number of working threads; with 1, none is started. 0 means the config's `num_threads`, or,
    /// without a config, as many as the machine has.
    pub threads: u32,
    pub progress: aq_progress_fn,
    pub log: aq_log_fn,
    /// Passed to progress and log.
    pub user_data: *mut c_void,
    /// Not 0: requires the output to be a folder, and refuses a single file. Runs into a folder
    /// continue with existing parts by default.
    pub resume: u32,
    /// For a folder: the number of the share to do, from 1 to `parts`; aq_merge combines the
    /// shares. 0, with `parts` 0, means everything.
    pub part: u32,
    pub parts: u32,
    /// For a folder: bytes of planes after which a part ends; 0 means 128 MiB.
    pub part_bytes: u64,
    /// Not 0: for a folder, starts over and removes the parts of an earlier run, even of another
    /// model or with other settings. No other run may be writing to the folder.
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
    /// Reads the caller's options; NULL means the defaults.
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

    /// These options with the threads of a config, unless they have their own.
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
