//! Where it is shown how far something is that takes time: on a terminal one line that is drawn anew, elsewhere and as JSON a
//! line for each stage and every ten seconds.
//!
//! In come lines, each with the name of its stage; which of them are printed is decided here, and nowhere else. The last of a
//! stage always is.

use crate::failure::Failure;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// How often a stage that goes on is a line of its own.
const LINE: Duration = Duration::from_secs(10);

/// What was shown, and where.
pub struct Display {
    bar: Option<ProgressBar>,
    /// What was shown last.
    last: Option<Shown>,
}

struct Shown {
    stage: String,
    /// The line as it would be now, and whether it was printed so.
    text: String,
    printed: bool,
    /// When one was printed.
    at: Duration,
}

impl Display {
    /// Shows nothing yet.
    pub fn new(json: bool) -> Self {
        let bar = (!json && std::io::stdout().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg}").expect("it is a template"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Display { bar, last: None }
    }

    /// Shows the line that a stage has at a time, counted from any beginning; `rests` if no more will come.
    pub fn show(&mut self, stage: &str, text: String, at: Duration, rests: bool) -> Result<(), Failure> {
        let before = self.last.take();
        let ended = before.as_ref().filter(|before| before.stage != stage);
        // The last that was heard of a stage is how it ended.
        let unsaid = ended.filter(|before| !before.printed).map(|before| &before.text);
        let mut last = Shown { stage: stage.to_owned(), text, printed: true, at };
        if let Some(bar) = &self.bar {
            if let Some(ended) = ended {
                bar.println(&ended.text);
            }
            bar.set_message(last.text.clone());
            if rests {
                bar.println(&last.text);
            }
        } else {
            if let Some(text) = unsaid {
                print(text)?;
            }
            match &before {
                Some(before) if ended.is_none() && !rests && at.saturating_sub(before.at) < LINE => {
                    last.printed = before.printed && before.text == last.text;
                    last.at = before.at;
                }
                _ => print(&last.text)?,
            }
        }
        self.last = Some(last);
        Ok(())
    }

    /// Takes away the line that is drawn anew.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Prints a line.
pub fn print(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{text}").map_err(Failure::Print)
}
