//! Which model a job runs with, and the loads that takes.

use crate::dialect::Dialect;
use crate::render::Run;

impl Run<'_> {
    /// Where tasks are known, only an override names a model. As read, A1111 passes over one that it does not know, and
    /// Forge raises an exception: then this is `false`.
    pub(crate) fn choose_model(&mut self) -> bool {
        self.job.model = None;
        let Some(name) = self.job.model_override.take() else { return true };
        let inner = self.sim.lock();
        self.job.model = inner.models.find(&name);
        self.job.model.is_some() || inner.config.dialect == Dialect::A1111
    }

    /// Loads what the request or the options name; `false` if there is no such model.
    pub(crate) async fn ensure_model(&mut self) -> bool {
        let (wanted, loaded) = {
            let inner = self.sim.lock();
            let name = self.job.model.as_ref().unwrap_or(&inner.models.selected);
            (inner.models.find(name), inner.models.loaded.clone())
        };
        let Some(wanted) = wanted else {
            let message = "Load model: not found";
            self.sim.lock().log.write("ERROR", "sd_models", message);
            return false;
        };
        if self.job.model.is_some() {
            self.sim.select(&wanted);
        }
        if loaded.as_ref() != Some(&wanted) {
            self.stage("Load model");
            self.sim.load(&wanted, &mut self.pace).await;
        }
        true
    }

    /// Loads the model of this job only; answers the one to load again afterwards.
    pub(crate) async fn override_model(&mut self) -> Option<String> {
        let name = self.job.model_override.clone()?;
        let (wanted, loaded) = {
            let inner = self.sim.lock();
            (inner.models.find(&name), inner.models.loaded.clone())
        };
        let Some(wanted) = wanted else {
            let mut inner = self.sim.lock();
            inner.log.write("WARNING", "sd_models", &format!("Override: model=\"{name}\" not found"));
            // Two stages come and go at once.
            for _ in 0..2 {
                let stage = inner.state.begin("Load model");
                inner.state.end(&stage);
            }
            return None;
        };
        if loaded.as_ref() == Some(&wanted) {
            return None;
        }
        self.stage("Load model");
        self.sim.load(&wanted, &mut self.pace).await;
        loaded
    }
}
