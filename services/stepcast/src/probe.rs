//! A first look at the backends, for the screen alone: the poller looks for itself.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::StatusCode;
use secrecy::ExposeSecret as _;
use stepcast_poller::BackendSpec;

use crate::screen::BackendLine;

/// How long a backend may take before the screen goes without it.
const PATIENCE: Duration = Duration::from_millis(800);

/// Looks at all backends at once.
pub async fn look(backends: &[BackendSpec]) -> Vec<BackendLine> {
    join_all(backends.iter().map(look_at)).await
}

async fn look_at(backend: &BackendSpec) -> BackendLine {
    let line = |reached, problem| BackendLine {
        id: backend.id.clone(),
        url: backend.url.to_string(),
        reached,
        problem,
    };
    match ask(backend).await {
        Err(_) => line(false, None),
        Ok(status) if status.is_success() => line(true, None),
        Ok(StatusCode::UNAUTHORIZED) => line(false, Some("refuses our user and password".to_owned())),
        Ok(StatusCode::NOT_FOUND) => {
            line(false, Some("answers, but has no API (start it with --api?)".to_owned()))
        }
        // Too many requests, or an error of its own: it is there, and the poller will see.
        Ok(_) => line(true, None),
    }
}

async fn ask(backend: &BackendSpec) -> reqwest::Result<StatusCode> {
    let address =
        format!("{}/sdapi/v1/progress?skip_current_image=true", backend.url.as_str().trim_end_matches('/'));
    let mut request = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?.get(address);
    if let Some((user, password)) = &backend.credentials {
        request = request.basic_auth(user, Some(password.expose_secret()));
    }
    Ok(request.send().await?.status())
}
