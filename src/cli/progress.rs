//! Progress on standard error, shown only where it is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// Counts things.
pub fn of_items(total: usize, what: &'static str) -> ProgressBar {
    styled(ProgressBar::new(total as u64), "{msg} {bar:40} {human_pos}/{human_len}, {eta} left").with_message(what)
}

/// Counts bytes of a file; without a size only those that passed.
pub fn of_bytes(total: Option<u64>, what: &'static str) -> ProgressBar {
    match total {
        Some(total) => styled(ProgressBar::new(total), "{msg} {bar:40} {bytes}/{total_bytes}, {eta} left"),
        None => styled(ProgressBar::no_length(), "{msg} {spinner} {bytes}"),
    }
    .with_message(what)
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
