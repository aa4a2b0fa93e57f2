//! The optional configuration file: TOML, with the names of the flags as its keys.
//!
//! What stands at its top is for every service that reads it; a section is for one. So one file does for all services of
//! a machine, and each still refuses what it does not know.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::address::without_credentials;

/// Whoever has a section of its own.
const SECTIONS: [&str; 4] = ["api", "poller", "gateway", "up"];
/// How alike two names must be for one to be proposed for the other, 0 to 1.
const ALIKE: f64 = 0.8;

/// What a file says to one service.
#[derive(Debug, Default)]
pub struct File {
    /// Where it is.
    pub path: PathBuf,
    /// Its settings by name, with `_` between words.
    pub entries: BTreeMap<String, Entry>,
    /// Sections that are for others.
    pub skipped: Vec<String>,
}

/// A setting.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The line that it stands on, from 1.
    pub line: usize,
    /// What it is set to.
    pub value: Value,
}

/// A value, as text that a flag would be given.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `true` or `false`.
    Switch(bool),
    /// A text or a number.
    One(String),
    /// A list of them.
    Many(Vec<String>),
}

impl File {
    /// Reads the file for one service: its own section, and what stands above all sections. `known` are the names of all
    /// its settings.
    ///
    /// Errors are sentences that begin with the place.
    pub fn read(path: &Path, section: &str, known: &[String]) -> Result<Self, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("the configuration {} cannot be read: {error}", path.display()))?;
        Reader { path, text: &text, section, known }.read()
    }

    /// Where a setting stands, as `FILE:LINE`.
    pub fn place(&self, entry: &Entry) -> String {
        format!("{}:{}", self.path.display(), entry.line)
    }

    /// A warning if one of these settings, which may log somebody in, does so and can be read by everybody.
    pub fn warning<'a>(&self, secrets: impl IntoIterator<Item = &'a str>) -> Option<String> {
        let holds = secrets.into_iter().any(|key| self.entries.get(key).is_some_and(logs_in));
        let mode = std::fs::metadata(&self.path).ok()?.permissions().mode();
        (holds && mode & 0o007 != 0).then(|| {
            let path = self.path.display();
            format!("{path} holds secrets, and everybody on this machine may read it: chmod 640 {path}")
        })
    }
}

/// Whether a value logs somebody in: an address may do without.
fn logs_in(entry: &Entry) -> bool {
    let secret = |text: &String| !text.contains("://") || without_credentials(text) != *text;
    match &entry.value {
        Value::Switch(_) => false,
        Value::One(text) => secret(text),
        Value::Many(texts) => texts.iter().any(secret),
    }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    section: &'a str,
    known: &'a [String],
}

impl Reader<'_> {
    fn read(&self) -> Result<File, String> {
        let table = DeTable::parse(self.text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let column = self.text[..start].rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            format!("{}:{column}: {}", self.place(start), error.message())
        })?;
        let mut file = File { path: self.path.to_owned(), ..File::default() };
        let mut own = BTreeMap::new();
        for (key, value) in in_order(table.get_ref()) {
            let name = normal(key.get_ref());
            let DeValue::Table(section) = value.get_ref() else {
                self.set(&mut file.entries, key, value)?;
                continue;
            };
            let at = self.place(key.span().start);
            if name == self.section {
                for (key, value) in in_order(section) {
                    self.set(&mut own, key, value)?;
                }
            } else if SECTIONS.contains(&name.as_str()) {
                file.skipped.push(name);
            } else if self.known.contains(&name) {
                return Err(format!("{at}: a table is no value for '{name}'"));
            } else {
                return Err(format!("{at}: unknown section '{name}'{}", proposal(&name, &SECTIONS)));
            }
        }
        file.entries.extend(own);
        Ok(file)
    }

    fn set(
        &self,
        entries: &mut BTreeMap<String, Entry>,
        key: &Spanned<impl AsRef<str>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), String> {
        let start = key.span().start;
        let (at, name) = (self.place(start), normal(key.get_ref().as_ref()));
        if !self.known.contains(&name) {
            return Err(format!("{at}: unknown setting '{name}'{}", proposal(&name, self.known)));
        }
        let value =
            read_value(value.get_ref()).map_err(|what| format!("{at}: {what} is no value for '{name}'"))?;
        let entry = Entry { line: self.line(start), value };
        match entries.insert(name.clone(), entry) {
            Some(earlier) => Err(format!("{at}: '{name}' is set on line {} already", earlier.line)),
            None => Ok(()),
        }
    }

    fn line(&self, start: usize) -> usize {
        self.text[..start].matches('\n').count() + 1
    }

    fn place(&self, start: usize) -> String {
        format!("{}:{}", self.path.display(), self.line(start))
    }
}

/// As they stand in the file.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<(&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// Errors say what it is that cannot be a value.
fn read_value(value: &DeValue<'_>) -> Result<Value, &'static str> {
    match value {
        DeValue::Boolean(switch) => Ok(Value::Switch(*switch)),
        DeValue::Array(values) => {
            let one = |value: &Spanned<DeValue<'_>>| match read_value(value.get_ref())? {
                Value::One(text) => Ok(text),
                Value::Switch(_) | Value::Many(_) => Err("a list of anything but texts and numbers"),
            };
            match values.iter().map(one).collect::<Result<Vec<_>, _>>()? {
                values if values.is_empty() => Err("an empty list"),
                values => Ok(Value::Many(values)),
            }
        }
        DeValue::String(text) => Ok(Value::One(text.to_string())),
        DeValue::Integer(number) => {
            let number = i128::from_str_radix(number.as_str(), number.radix());
            number.map(|number| Value::One(number.to_string())).map_err(|_| "a number as large as this")
        }
        DeValue::Float(number) => Ok(Value::One(number.as_str().to_owned())),
        DeValue::Datetime(_) => Err("a date"),
        DeValue::Table(_) => Err("a table"),
    }
}

/// A name as it is compared: flags have `-` between words, most people write `_`.
pub fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// What may have been meant.
fn proposal(name: &str, known: &[impl AsRef<str>]) -> String {
    let alike = known.iter().map(|known| (strsim::jaro_winkler(name, known.as_ref()), known.as_ref()));
    match alike.max_by(|(a, _), (b, _)| a.total_cmp(b)) {
        Some((likeness, known)) if likeness >= ALIKE => format!("; did you mean '{known}'?"),
        _ => format!(
            "; --help lists what there is, and what only one service knows goes into a section of its own: {}",
            SECTIONS.map(|section| format!("[{section}]")).join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(section: &str, text: &str) -> Result<File, String> {
        let known = ["listen", "max_steps", "sdnext", "adopt", "wait"].map(str::to_owned);
        Reader { path: Path::new("x.toml"), text, section, known: &known }.read()
    }

    fn refused(text: &str) -> String {
        read("api", text).unwrap_err()
    }

    #[test]
    fn a_section_goes_before_the_top_and_those_of_others_are_skipped() {
        let text = "listen = 'a'\nmax-steps = 1_000\nsdnext = ['x', 2]\n[api]\nlisten = 'b'\nadopt = true\n[poller]\nwhat = 1\n";
        let file = read("api", text).unwrap();
        let entry = |line, value| Entry { line, value };
        let expected = [
            ("adopt", entry(6, Value::Switch(true))),
            ("listen", entry(5, Value::One("b".to_owned()))),
            ("max_steps", entry(2, Value::One("1000".to_owned()))),
            ("sdnext", entry(3, Value::Many(vec!["x".to_owned(), "2".to_owned()]))),
        ];
        assert_eq!(file.entries.into_iter().collect::<Vec<_>>(), expected.map(|(k, v)| (k.to_owned(), v)));
        assert_eq!(file.skipped, ["poller"]);
        assert_eq!(read("gateway", text).unwrap().entries["listen"].line, 1);
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_place_and_what_may_have_been_meant() {
        assert_eq!(
            refused("\nmax_step = 1"),
            "x.toml:2: unknown setting 'max_step'; did you mean 'max_steps'?"
        );
        assert_eq!(refused("[api]\nLISTEN_ = 1"), refused("[api]\nLISTEN-=1"));
        assert_eq!(refused("[pollers]"), "x.toml:1: unknown section 'pollers'; did you mean 'poller'?");
        assert!(refused("zzz = 1").ends_with("a section of its own: [api], [poller], [gateway], [up]"));
        assert!(refused("a = 1\na = 2").starts_with("x.toml:"), "{}", refused("a = 1\na = 2"));
        assert_eq!(refused("max_steps = 1\nmax-steps = 2"), "x.toml:2: 'max_steps' is set on line 1 already");
        assert!(refused("listen = \n").starts_with("x.toml:1:"), "{}", refused("listen = \n"));
    }

    #[test]
    fn what_a_flag_cannot_be_given_is_no_value() {
        assert_eq!(refused("wait = 2026-01-01"), "x.toml:1: a date is no value for 'wait'");
        assert_eq!(refused("[wait]\nx = 1"), "x.toml:1: a table is no value for 'wait'");
        assert_eq!(refused("wait = []"), "x.toml:1: an empty list is no value for 'wait'");
        assert!(refused("wait = [[1]]").contains("a list of anything but"));
    }

    #[test]
    fn who_may_read_a_secret_is_looked_at_only_where_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.toml");
        let warned = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let known = ["url", "password", "other"].map(str::to_owned);
            File::read(&path, "api", &known).unwrap().warning(["url", "password"])
        };
        assert!(warned("password = 'x'", 0o644).unwrap().contains("chmod 640"));
        assert!(warned("url = 'nats://bob:x@a'", 0o604).is_some());
        assert_eq!(warned("password = 'x'", 0o640), None);
        assert_eq!(warned("url = 'nats://a'\nother = 'x'", 0o644), None);
    }
}
