//! Flag, environment, file, default: which of them holds for a setting.
//!
//! Everything is derived from the command line's own definition, so that no setting can be left out. What only the file
//! says is put behind the flags that were given: from there on it is a flag, with its checks and its words.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::file::{File, Value, normal};

const FILE: &str = "config";
const CHECK: &str = "check-config";
const HEADING: &str = "Configuration";

/// Where a value comes from, the strongest last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody has said anything.
    Nobody,
    /// The program's own.
    Default,
    /// The file, with the line.
    File(String),
    /// A variable, by its name.
    Variable(String),
    /// A flag.
    Flag,
}

/// Adds the flags by which the other layers are reached.
pub fn equip(command: Command) -> Command {
    let file = Arg::new(FILE)
        .long(FILE)
        .env("STEPCAST_CONFIG")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help_heading(HEADING)
        .help(
            "Read settings from this TOML file: flags without their dashes are its keys. Flags and variables go before it",
        );
    let check = Arg::new(CHECK)
        .long(CHECK)
        .action(ArgAction::SetTrue)
        .help_heading(HEADING)
        .help("Say which settings hold, and from where they come, instead of starting");
    let companions: Vec<Arg> = settings(&command).filter(|arg| is_secret(arg)).map(companion).collect();
    command.arg(file).arg(check).args(companions)
}

/// Reads what may log somebody in from a file, as container platforms hand it out.
fn companion(secret: &Arg) -> Arg {
    let long = secret.get_long().expect("a setting has a long name");
    let variable = secret.get_env().map(|name| format!("{}_FILE", name.to_string_lossy()));
    Arg::new(companion_id(secret))
        .long(format!("{long}-file"))
        .env(variable.expect("a secret has a variable"))
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help_heading(HEADING)
        .hide_short_help(true)
        .help(format!("As --{long}, read from this file"))
}

fn companion_id(secret: &Arg) -> String {
    format!("{}_file", secret.get_id())
}

/// Everything that a person can set by a flag and by other means. What is said of every command, such as how to print,
/// is none.
pub fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        let is_own = arg.get_long().is_none_or(|long| [FILE, CHECK].contains(&long));
        arg.get_env().is_some() && !is_own && !arg.is_hide_set() && !arg.is_global_set()
    })
}

/// Settings proper: without those that name the file of another.
pub fn proper(command: &Command) -> impl Iterator<Item = &Arg> {
    settings(command).filter(|arg| arg.get_help_heading() != Some(HEADING))
}

/// Whether a setting's values are kept out of the help: then they may log somebody in.
pub fn is_secret(arg: &Arg) -> bool {
    arg.is_hide_env_values_set()
}

/// The name of a setting in the file.
pub fn key(arg: &Arg) -> String {
    normal(arg.get_long().unwrap_or_default())
}

/// Whether only the settings are asked for.
pub fn is_check(matches: &ArgMatches) -> bool {
    matches.get_flag(CHECK)
}

/// What the layers below the flags say.
#[derive(Debug, Default)]
pub struct Layers {
    /// Flags to add to those that were given.
    pub arguments: Vec<OsString>,
    /// Where the value of each setting comes from, by its long name.
    pub origins: BTreeMap<String, Origin>,
    /// Sections of the file that are for others.
    pub skipped: Vec<String>,
    /// What somebody should be told.
    pub warning: Option<String>,
}

impl Layers {
    /// Reads the file that is named, if any, and the files of the secrets.
    pub fn read(command: &Command, matches: &ArgMatches, section: &str) -> Result<Self, clap::Error> {
        let known: Vec<String> = settings(command).map(key).collect();
        let path = matches.get_one::<PathBuf>(FILE).filter(|path| !path.as_os_str().is_empty());
        let file = match path {
            Some(path) => File::read(path, section, &known).map_err(complaint)?,
            None => File::default(),
        };
        let secrets: Vec<String> = settings(command).filter(|arg| is_secret(arg)).map(key).collect();
        let mut layers = Self {
            skipped: file.skipped.clone(),
            warning: file.warning(secrets.iter().map(String::as_str)),
            ..Self::default()
        };
        for arg in proper(command) {
            layers.settle(command, arg, matches, &file)?;
        }
        Ok(layers)
    }

    fn settle(
        &mut self,
        command: &Command,
        arg: &Arg,
        matches: &ArgMatches,
        file: &File,
    ) -> Result<(), clap::Error> {
        let long = arg.get_long().unwrap_or_default();
        let mut origin = origin(arg, matches, file);
        let companion =
            command.get_arguments().find(|other| is_secret(arg) && *other.get_id() == companion_id(arg));
        if let Some(companion) = companion {
            let path = path_of(companion, matches, file);
            // An empty one is none: a variable cannot be left out everywhere.
            let by_file = if path.as_os_str().is_empty() {
                Origin::Nobody
            } else {
                self::origin(companion, matches, file)
            };
            if by_file > Origin::Default && rank(&by_file) == rank(&origin) {
                let other = companion.get_long().unwrap_or_default();
                return Err(complaint(format!("'--{long}' cannot be used with '--{other}': both are set")));
            }
            if by_file > origin {
                let content = std::fs::read_to_string(&path)
                    .map_err(|error| complaint(format!("{} cannot be read: {error}", path.display())))?;
                self.arguments.push(format!("--{long}={}", content.trim_end_matches(['\r', '\n'])).into());
                self.origins.insert(long.to_owned(), Origin::File(path.display().to_string()));
                return Ok(());
            }
        }
        if let (Origin::File(_), Some(entry)) = (&origin, file.entries.get(&key(arg))) {
            let flags = flags(arg, &entry.value)
                .map_err(|what| complaint(format!("{}: {what}", file.place(entry))))?;
            self.arguments.extend(flags);
            origin = Origin::File(file.place(entry));
        }
        self.origins.insert(long.to_owned(), origin);
        Ok(())
    }

    /// Says of a complaint about a value from the file where it stands there.
    pub fn place(&self, error: clap::Error) -> clap::Error {
        let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg) else { return error };
        let long = arg.trim_start_matches('-').split([' ', '=']).next().unwrap_or_default();
        let Some(Origin::File(place)) = self.origins.get(long) else { return error };
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        clap::Error::raw(error.kind(), format!("{place}: {text}"))
    }
}

fn origin(arg: &Arg, matches: &ArgMatches, file: &File) -> Origin {
    let variable = || arg.get_env().unwrap_or_default().to_string_lossy().into_owned();
    match matches.value_source(arg.get_id().as_str()) {
        Some(ValueSource::CommandLine) => Origin::Flag,
        Some(ValueSource::EnvVariable) => Origin::Variable(variable()),
        _ if file.entries.contains_key(&key(arg)) => Origin::File(String::new()),
        Some(_) => Origin::Default,
        None => Origin::Nobody,
    }
}

/// Origins without what they say: two variables are on one level.
fn rank(origin: &Origin) -> std::mem::Discriminant<Origin> {
    std::mem::discriminant(origin)
}

fn path_of(companion: &Arg, matches: &ArgMatches, file: &File) -> PathBuf {
    let given = matches.get_one::<PathBuf>(companion.get_id().as_str()).map(PathBuf::as_path);
    let told = match file.entries.get(&key(companion)).map(|entry| &entry.value) {
        Some(Value::One(text)) => Some(Path::new(text)),
        _ => None,
    };
    given.or(told).unwrap_or(Path::new("")).to_owned()
}

/// A value as flags.
fn flags(arg: &Arg, value: &Value) -> Result<Vec<OsString>, String> {
    let long = arg.get_long().unwrap_or_default();
    let is_list = matches!(arg.get_action(), ArgAction::Append);
    let flag = |text: &String| format!("--{long}={text}").into();
    match value {
        Value::Switch(on) if !arg.get_action().takes_values() => {
            Ok(on.then(|| format!("--{long}").into()).into_iter().collect())
        }
        Value::One(text) if !arg.get_action().takes_values() => {
            Err(format!("invalid value '{text}' for '--{long}'\n  [possible values: true, false]"))
        }
        Value::Switch(on) => Ok(vec![flag(&on.to_string())]),
        Value::One(text) => Ok(vec![flag(text)]),
        Value::Many(texts) if is_list => Ok(texts.iter().map(flag).collect()),
        Value::Many(_) => Err(format!("'--{long}' takes one value, and not a list")),
    }
}

/// A sentence as the command line's own complaints.
pub fn complaint(text: impl Into<String>) -> clap::Error {
    let mut text: String = text.into();
    text.push('\n');
    clap::Error::raw(ErrorKind::ValueValidation, text)
}
