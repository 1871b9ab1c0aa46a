//! `[telemetry]`: where traces go, and of which requests.

use serde::Deserialize;

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// `http://host:port` of an OpenTelemetry collector. Absent: nothing is traced.
    pub otlp_endpoint: Option<String>,
    /// Of the requests whose callers do not ask for a trace.
    pub sample_ratio: f64,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { otlp_endpoint: None, sample_ratio: 0.01 }
    }
}
