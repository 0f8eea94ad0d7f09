//! The course of an output: begun or taken up again, written, finished, published.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::base::Source;
use super::control::Observer;
use super::error::CheckpointError;
use super::journal::Record;
use super::plan::Plan;
use super::residue_file::ResidueShard;
use super::resume::examine;
use super::run::Run;
use super::staging::{Place, Staging};

/// An output that is to be written.
pub(super) struct OutputWork<'a> {
    pub(super) place: &'a Place,
    /// What tells this work from other work.
    pub(super) identity: Value,
    pub(super) plan: &'a Plan,
    pub(super) residues: Option<&'a [ResidueShard]>,
    pub(super) threads: usize,
    /// Whether to go on with what is left of an earlier call.
    pub(super) resume: bool,
}

/// An output whose shards are written.
pub(super) struct Written<'a> {
    pub(super) staging: &'a Staging,
    pub(super) records: Vec<Record>,
    /// Bytes that an earlier call had written.
    pub(super) resumed_bytes: u64,
}

impl OutputWork<'_> {
    /// Writes the shards, lets `finish` write what else belongs to the output, and gives it its name.
    pub(super) fn carry_out<R: Serialize + DeserializeOwned>(
        self,
        observer: &mut Observer<'_>,
        finish: impl FnOnce(&Written<'_>, &mut Observer<'_>) -> Result<R, CheckpointError>,
    ) -> Result<R, CheckpointError> {
        if !self.place.has_unfinished() {
            self.place.require_vacant()?;
        }
        let (staging, mut journal, mut records) = self.place.open()?;
        if !self.resume {
            records.clear();
        }
        if let Some(report) = self.published(&records) {
            staging.discard(journal)?;
            return Ok(report);
        }
        if let Err(refusal) = self.place.require_vacant() {
            // An earlier call was killed while it removed what was left: its output is whole.
            if records.is_empty() {
                staging.discard(journal)?;
            }
            return Err(refusal);
        }
        match records.first() {
            Some(Record::Work(found)) if *found != self.identity => {
                return Err(CheckpointError::OtherWork {
                    path: staging.root().to_owned(),
                    difference: difference(found, &self.identity),
                });
            }
            Some(Record::Work(_)) => {}
            _ => {
                records.clear();
                staging.clear()?;
            }
        }
        let earlier = examine(self.plan, self.residues, staging.files(), &records)?;
        let mut kept = vec![Record::Work(self.identity.clone())];
        kept.extend(earlier.records.iter().cloned());
        let full = |error: CheckpointError| error.or_full(staging.root(), 0);
        journal.restart(&kept).map_err(full)?;
        let resumed_bytes = earlier.bytes();
        let run = Run { plan: self.plan, staging: &staging, residues: self.residues, threads: self.threads };
        run.execute(&mut journal, earlier.start, earlier.residue, observer)?;
        let written = Written { staging: &staging, records: journal.read()?, resumed_bytes };
        let report = finish(&written, observer)?;
        self.plan.sources.iter().try_for_each(Source::require_unchanged)?;
        let text = serde_json::to_string(&report).unwrap_or_default();
        journal.append(&[Record::Complete(text)]).and_then(|()| journal.sync()).map_err(full)?;
        staging.publish(journal)?;
        Ok(report)
    }

    /// The report of an earlier call that was killed between giving the output its name and cleaning up.
    fn published<R: DeserializeOwned>(&self, records: &[Record]) -> Option<R> {
        match (records.first(), records.last()) {
            (Some(Record::Work(found)), Some(Record::Complete(report)))
                if *found == self.identity && self.place.require_vacant().is_err() =>
            {
                serde_json::from_str(report).ok()
            }
            _ => None,
        }
    }
}

/// The first thing in which two pieces of work differ.
fn difference(found: &Value, wanted: &Value) -> String {
    let fields = wanted.as_object().into_iter().flatten();
    let differing =
        fields.filter(|(name, value)| found.get(name) != Some(value)).map(|(name, _)| name.as_str());
    let differing: Vec<&str> = differing.collect();
    format!("another value of: {}", differing.join(", "))
}
