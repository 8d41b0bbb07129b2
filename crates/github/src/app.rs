//! The App itself, as `forrest doctor` looks at it.

use serde::Deserialize;

use crate::GitHubError;
use crate::client::{Call, GitHub};
use crate::permissions::{self, Permissions, REQUIRED_EVENTS};
use crate::wire::WireApp;

/// What GitHub says of the App whose key signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppFacts {
    /// The App's id.
    pub id: Option<u64>,
    /// Its short name, as in its address.
    pub slug: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Its public page.
    pub page_url: Option<String>,
    /// What it asks installations for; `None` where GitHub does not say.
    pub permissions: Option<Permissions>,
    /// The events it is subscribed to; `None` where GitHub does not say.
    pub events: Option<Vec<String>>,
}

impl AppFacts {
    /// What Forrest needs and the App does not ask for, each as `name: level`.
    pub fn missing_permissions(&self) -> Vec<String> {
        self.permissions.as_ref().map(permissions::missing).unwrap_or_default()
    }

    /// The events that webhooks need and the App is not subscribed to.
    pub fn missing_events(&self) -> Vec<&'static str> {
        let Some(events) = &self.events else { return Vec::new() };
        REQUIRED_EVENTS.into_iter().filter(|event| !events.iter().any(|e| e == event)).collect()
    }
}

/// Where GitHub sends the App's webhooks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct HookConfig {
    /// The address; `None` or empty when the App has no webhook: then there is only polling.
    pub url: Option<String>,
    /// `json` or `form`; Forrest takes both.
    pub content_type: Option<String>,
}

impl GitHub {
    /// Asks who the App is. Works exactly if its id and key belong together.
    ///
    /// # Errors
    /// As every request.
    pub async fn app(&self) -> Result<AppFacts, GitHubError> {
        let call = Call::get("/app".to_owned());
        let answer = self.call_as_app(&call).await?;
        let hint = "check github.api_url".to_owned();
        let answer = self.expect_success(&call, answer, Some(hint))?;
        let wire: WireApp = call.parse(&answer.body)?;
        Ok(AppFacts {
            id: wire.id,
            slug: wire.slug,
            name: wire.name,
            page_url: wire.html_url,
            permissions: wire.permissions.map(permissions::from_wire),
            events: wire.events,
        })
    }

    /// Asks where GitHub sends the App's webhooks. GitHub never shows the secret.
    ///
    /// # Errors
    /// As every request.
    pub async fn hook_config(&self) -> Result<HookConfig, GitHubError> {
        let call = Call::get("/app/hook/config".to_owned());
        let answer = self.call_as_app(&call).await?;
        let hint = "check that the App has a webhook (App settings, \"Webhook\")".to_owned();
        let answer = self.expect_success(&call, answer, Some(hint))?;
        call.parse(&answer.body)
    }
}
