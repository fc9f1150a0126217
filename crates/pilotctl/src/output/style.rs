//! ANSI colours, on a terminal only (spec 08 section 1.2).

/// Paints text, or leaves it alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    on: bool,
}

impl Style {
    /// Colours if `terminal` and neither `NO_COLOR` nor `PILOT_NO_COLOR` is set to something.
    pub fn detect(terminal: bool) -> Style {
        let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        Style { on: terminal && !set("NO_COLOR") && !set("PILOT_NO_COLOR") }
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self.on {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    /// Bold.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Dim.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// Green: it works.
    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Cyan: names and addresses.
    pub fn cyan(self, text: &str) -> String {
        self.paint("36", text)
    }

    /// Yellow: worth a look.
    pub fn warn(self, text: &str) -> String {
        self.paint("33", text)
    }
}
