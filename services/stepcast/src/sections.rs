//! The services' own settings, as settings of `up`.
//!
//! Each service knows what it can be told, and says so in its own types. Here their flags are added to those of `up`, but
//! for the ones that `up` has itself; what was given is handed on to each service as if it had been started with that.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context as _;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};
use stepcast_api::ApiConfig;
use stepcast_gateway::GatewayConfig;
use stepcast_poller::PollerConfig;
use stepcast_shared::config::{self, NatsConfig, TelemetryConfig};

/// What the services were told, by flag, variable or file.
#[derive(Clone, Default)]
pub struct Sections {
    /// Arguments by the long name of their flag.
    given: BTreeMap<String, Vec<String>>,
}

impl fmt::Debug for Sections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sections").field("given", &self.given.keys()).finish()
    }
}

impl Sections {
    /// A section, with `decided` before what was given, which goes before variables and defaults.
    pub fn section<T: Args>(&self, decided: &[(&str, String)]) -> anyhow::Result<T> {
        let command = T::augment_args(Command::new("stepcast"));
        let mut arguments = vec!["stepcast".to_owned()];
        for long in command.get_arguments().filter_map(Arg::get_long) {
            match decided.iter().find(|(name, _)| *name == long) {
                Some((_, value)) => arguments.push(format!("--{long}={value}")),
                None => arguments.extend(self.given.get(long).into_iter().flatten().cloned()),
            }
        }
        let read = |arguments| T::from_arg_matches(&command.try_get_matches_from(arguments)?);
        read(arguments).map_err(config::without_secrets).context("the settings cannot be understood")
    }
}

/// Every flag of the services.
fn flags() -> Vec<Arg> {
    let sections: [fn(Command) -> Command; 5] = [
        ApiConfig::augment_args,
        PollerConfig::augment_args,
        GatewayConfig::augment_args,
        NatsConfig::augment_args,
        TelemetryConfig::augment_args,
    ];
    let sections = sections.map(|augment| augment(Command::new("sections")));
    sections.iter().flat_map(Command::get_arguments).cloned().collect()
}

impl Args for Sections {
    fn augment_args(command: Command) -> Command {
        flags().into_iter().fold(command, |command, flag| {
            let is_there = command.get_arguments().any(|own| own.get_long() == flag.get_long());
            if is_there { command } else { command.arg(flag.required(false).hide_short_help(true)) }
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Sections {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut sections = Self::default();
        sections.update_from_arg_matches(matches)?;
        Ok(sections)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        for flag in flags() {
            let Some(long) = flag.get_long() else { continue };
            let id = flag.get_id().as_str();
            if matches.value_source(id).is_none_or(|source| source == ValueSource::DefaultValue) {
                continue;
            }
            let values = matches.get_raw(id).into_iter().flatten().map(|value| value.to_string_lossy());
            let arguments = if flag.get_action().takes_values() {
                values.map(|value| format!("--{long}={value}")).collect()
            } else {
                // A variable may say no.
                values.filter(|value| value == "true").map(|_| format!("--{long}")).collect()
            };
            self.given.insert(long.to_owned(), arguments);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command as Chosen};

    fn sections(arguments: &[&str]) -> Sections {
        let cli = Cli::try_parse_from(["stepcast", "up"].iter().chain(arguments)).unwrap();
        let Chosen::Up(up) = cli.command else { panic!("this is `up`") };
        up.sections
    }

    #[test]
    fn a_service_is_told_what_up_was_told_and_nothing_else() {
        let told = sections(&["--max-steps", "7", "--adopt", "--pools=a,b", "--gateway-idle", "2h"]);
        let url =
            |decided: &str| [("images-url", decided.to_owned()), ("database-url", "sqlite:x".to_owned())];
        let api: ApiConfig = told.section(&url("file:///x/")).unwrap();
        assert_eq!((api.limits.max_steps, api.limits.max_side), (7, 4096));
        let poller: PollerConfig = told.section(&url("file:///y/")).unwrap();
        assert!(poller.adopt);
        assert_eq!(poller.pools.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(poller.images_url.as_str(), "file:///y/");
        let gateway: GatewayConfig = told.section(&[]).unwrap();
        assert_eq!(gateway.limits.idle.as_secs(), 7200);
        assert_eq!(sections(&[]).section::<GatewayConfig>(&[]).unwrap().limits.idle.as_secs(), 3600);
    }

    #[test]
    fn what_a_service_refuses_is_refused_by_up() {
        let refused = Cli::try_parse_from(["stepcast", "up", "--max-steps", "many"]).unwrap_err().to_string();
        assert!(refused.contains("invalid value 'many' for '--max-steps"), "{refused}");
    }
}
