//! A NATS operator with one account and one user, whose log-in is a token and a key: what `nsc` would make.

use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// What a server is told, and what a client.
pub struct Operator {
    /// Configuration of the server.
    pub config: String,
    /// The user's credentials file.
    pub credentials: String,
}

impl Operator {
    /// Makes one. Its account may use JetStream without limits.
    pub fn new() -> anyhow::Result<Self> {
        let (operator, account, user) =
            (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
        let own = token(&operator, &operator, "test", json!({ "type": "operator" }))?;
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        });
        let accounts =
            token(&operator, &account, "stepcast", json!({ "type": "account", "limits": limits }))?;
        let limits = json!({ "type": "user", "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {} });
        let users = token(&account, &user, "stepcast", limits)?;
        // JetStream does not start without one.
        let system = KeyPair::new_account();
        let limits = json!({ "subs": -1, "data": -1, "payload": -1, "wildcards": true, "conn": -1 });
        let systems = token(&operator, &system, "system", json!({ "type": "account", "limits": limits }))?;
        let config = format!(
            "operator: {own}\nresolver: MEMORY\nsystem_account: {system}\n\
             resolver_preload: {{ {account}: {accounts}, {system}: {systems} }}\n",
            account = account.public_key(),
            system = system.public_key(),
        );
        let seed = user.seed().context("a user has a seed")?;
        let credentials = format!(
            "-----BEGIN NATS USER JWT-----\n{users}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        Ok(Self { config, credentials })
    }

    /// Writes the user's credentials file.
    pub fn write_credentials(&self, path: &Path) -> anyhow::Result<()> {
        Ok(std::fs::write(path, &self.credentials)?)
    }
}

/// What `issuer` says of `subject`, signed.
fn token(issuer: &KeyPair, subject: &KeyPair, name: &str, mut what: Value) -> anyhow::Result<String> {
    what["version"] = json!(2);
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let claims = json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(), "name": name,
        "nats": what,
    });
    let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encoded(&header), encoded(&claims));
    let signature = issuer.sign(signed.as_bytes()).context("a key signs")?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
