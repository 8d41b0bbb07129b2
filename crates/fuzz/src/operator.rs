//! What the operator writes. Not a stranger, but a slip of the hand must not show a secret or crash a
//! daemon that reads the file again.

use std::path::Path;

use forrest_config::Config;

/// A configuration file.
pub(crate) fn config(data: &[u8]) {
    match Config::parse(data, Path::new("/nonexistent/forrest.yaml")) {
        Ok(loaded) => {
            let _ = format!("{:?}", loaded.config);
            assert!(loaded.warnings.iter().all(|finding| !finding.is_error()));
        }
        Err(errors) => {
            assert!(errors.errors() > 0, "refused for no reason");
            let text = errors.render(false);
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
            let _ = errors.render(true);
        }
    }
}
