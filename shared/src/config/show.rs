//! The settings that hold, as people may see them.

use std::any::TypeId;
use std::fmt::Write as _;

use clap::{Arg, ArgMatches, Command};
use secrecy::SecretString;

use super::layers::{Layers, Origin, is_secret, key, proper};
use crate::address::without_credentials;

/// One line for each setting: its name, its value, and where that comes from. What logs somebody in is shown as `***`.
pub fn settings(command: &Command, matches: &ArgMatches, layers: &Layers) -> String {
    let rows: Vec<[String; 3]> = proper(command).map(|arg| row(arg, matches, layers)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    // One long list would push the rest off the screen.
    let (name, value) = (width(0), width(1).min(48));
    let mut text = String::new();
    for [key, shown, from] in &rows {
        let _ = writeln!(text, "{key:<name$}  {shown:<value$}  {from}");
    }
    for section in &layers.skipped {
        let _ = writeln!(text, "[{section}] is for another service, and was not read");
    }
    text
}

fn row(arg: &Arg, matches: &ArgMatches, layers: &Layers) -> [String; 3] {
    let from = match layers.origins.get(arg.get_long().unwrap_or_default()) {
        None | Some(Origin::Nobody) => return [key(arg), "-".to_owned(), "not set".to_owned()],
        Some(Origin::Default) => "default".to_owned(),
        Some(Origin::File(place)) => place.clone(),
        Some(Origin::Variable(name)) => name.clone(),
        Some(Origin::Flag) => format!("--{}", arg.get_long().unwrap_or_default()),
    };
    let values = matches.get_raw(arg.get_id().as_str()).into_iter().flatten();
    let values: Vec<_> = values.map(|value| shown(arg, &value.to_string_lossy())).collect();
    [key(arg), values.join(","), from]
}

fn shown(arg: &Arg, value: &str) -> String {
    if !is_secret(arg) {
        return value.escape_debug().to_string();
    }
    // Of an address it helps to see where it leads. What else is secret is so as a whole, whatever it looks like.
    let is_text = arg.get_value_parser().type_id() == TypeId::of::<SecretString>();
    if is_text && !arg.get_long().is_some_and(|long| long.ends_with("-url")) {
        return "***".to_owned();
    }
    without_credentials(value).escape_debug().to_string()
}
