//! aq_config: the settings of a run.
//!
//! Settings have the keys and values of docs/configuration.md, as text: "bit_width" "4",
//! "group_size" "128", "rules" "*.v_proj.weight=bits:8,group:64;lm_head.*=keep" and so on. Later
//! values win; rules accumulate.

use std::ffi::c_char;
use std::path::Path;

use super::guard::{Fault, aq_error, aq_status, check_put, guard, put, text};
use super::handle::{Handle, Strings, borrow, borrow_mut, borrow_or, free, give};
use crate::plan::Config;

/// Settings of a run.
pub struct aq_config {
    pub(super) config: Config,
    strings: Strings,
}

impl Handle for aq_config {
    const NAME: &'static str = "aq_config";
}

/// Creates a configuration with the defaults of a profile: "edge", "local" or "cloud", or NULL for
/// "local". No environment variable is read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_config_new(
    profile: *const c_char,
    config: *mut *mut aq_config,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions, here and in all that follow.
    unsafe {
        guard(err, || {
            check_put(config, "config")?;
            let mut new = Config::new();
            if !profile.is_null() {
                new.set("deployment_profile", text(profile, "profile")?)?;
            }
            let strings = Strings::default();
            give(
                aq_config {
                    config: new,
                    strings,
                },
                config,
            )
        })
    }
}

/// Copies a configuration.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_config_clone(
    config: *const aq_config,
    copy: *mut *mut aq_config,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            check_put(copy, "copy")?;
            let config = borrow(config)?.config.clone();
            let strings = Strings::default();
            give(aq_config { config, strings }, copy)
        })
    }
}

/// Sets `key` to `value`. "rules" adds rules, separated by semicolons.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_config_set(
    config: *mut aq_config,
    key: *const c_char,
    value: *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let config = borrow_mut(config)?;
            config.change(|c| {
                c.set(text(key, "key")?, text(value, "value")?)
                    .map_err(Into::into)
            })
        })
    }
}

/// Adds one rule, such as "lm_head.*=keep" or "*.v_proj.weight=bits:8,group:64".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_config_add_rule(
    config: *mut aq_config,
    rule: *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let config = borrow_mut(config)?;
            config.change(|c| {
                c.push_rule(text(rule, "rule")?.parse()?);
                Ok(())
            })
        })
    }
}

/// Gets the current value of `key`, in the form that aq_config_set takes. The text belongs to the
/// config.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_config_get(
    config: *const aq_config,
    key: *const c_char,
    value: *mut *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let config = borrow(config)?;
            let found = config.config.get(text(key, "key")?)?;
            put(value, config.strings.lend(&found), "value")
        })
    }
}

/// Applies a YAML document: a mapping of keys to values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_config_merge_yaml(
    config: *mut aq_config,
    yaml: *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let config = borrow_mut(config)?;
            config.change(|c| c.merge_yaml(text(yaml, "yaml")?).map_err(Into::into))
        })
    }
}

/// Applies a YAML file.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_config_merge_yaml_file(
    config: *mut aq_config,
    path: *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let config = borrow_mut(config)?;
            let path = Path::new(text(path, "path")?);
            config.change(|c| c.merge_yaml_file(path).map_err(Into::into))
        })
    }
}

/// Applies the environment variables that begin with AQ_, such as AQ_BIT_WIDTH=2. Other calls read
/// none of them, except AQ_ISA.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_config_merge_env(
    config: *mut aq_config,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let config = borrow_mut(config)?;
            let variables = std::env::vars_os().filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.into_string().ok()?))
            });
            config.change(|c| c.merge_env(variables).map_err(Into::into))
        })
    }
}

/// Writes all current settings as YAML, which aq_config_merge_yaml can read. The text belongs to
/// the config.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_config_to_yaml(
    config: *const aq_config,
    yaml: *mut *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let config = borrow(config)?;
            put(yaml, config.strings.lend(&config.config.to_yaml()?), "yaml")
        })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_config_free(config: *mut aq_config) {
    // SAFETY: by the header's conventions.
    unsafe { guard(std::ptr::null_mut(), || free(config)) };
}

impl aq_config {
    /// Makes all changes, or none.
    fn change(
        &mut self,
        change: impl FnOnce(&mut Config) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut changed = self.config.clone();
        change(&mut changed)?;
        self.config = changed;
        self.strings.clear();
        Ok(())
    }
}

/// The configuration of a handle; the defaults for NULL.
pub(super) unsafe fn config_or_default(config: *const aq_config) -> Result<Config, Fault> {
    // SAFETY: as the caller's.
    let config = unsafe { borrow_or(config)? };
    Ok(config.map_or_else(Config::new, |config| config.config.clone()))
}
