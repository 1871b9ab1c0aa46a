//! Charts made of the resources of the synthetic patients, as many as wanted and no two alike.
//!
//! Each has a Patient and some other resources, the larger ones of those that there are. All get ids of their own, in
//! place of the ones that they had; headers are those that `charthold import` makes.

use charthold::fhir::Entry;
use charthold_client::{Chart, IndexTerm, Mutation, Put, RecordId};
use charthold_tests::patients;
use uuid::Uuid;

/// Of a chart.
pub const RECORDS: u64 = 10;
/// Most resources are smaller: so the mean is 1.5 KB. The upper bound leaves out the Provenance of each patient, which names
/// all of its records.
const BODY_BYTES: std::ops::Range<usize> = 1_000..65_536;

pub struct Charts {
    patients: Vec<Entry>,
    others: Vec<Entry>,
}

impl Charts {
    pub fn read() -> Self {
        let entries = (1..=24).flat_map(|number| patients::bundle(number).entries);
        let (patients, mut others): (Vec<_>, Vec<_>) = entries.partition(|entry| entry.record_type == "Patient");
        others.retain(|entry| BODY_BYTES.contains(&entry.body.len()));
        Self { patients, others }
    }

    pub fn chart(number: u64) -> Chart {
        Chart::patient(id(number, 0))
    }

    /// One of its records, the patient first.
    pub fn record(&self, number: u64, place: u64) -> RecordId {
        RecordId::new(&self.entry(number, place).record_type, id(number, place))
    }

    /// A whole chart for one commit, and how many bytes its bodies have.
    pub fn mutations(&self, number: u64) -> (Vec<Mutation>, u64) {
        let puts = (0..RECORDS).map(|place| (self.record(number, place), self.put(number, place)));
        let mut body_bytes = 0;
        let mutations = puts.map(|(record, put)| {
            body_bytes += put.body.len() as u64;
            Mutation::put(record, put).must_not_exist()
        });
        (mutations.collect(), body_bytes)
    }

    fn entry(&self, number: u64, place: u64) -> &Entry {
        match place {
            0 => &self.patients[number as usize % self.patients.len()],
            _ => &self.others[(number * (RECORDS - 1) + place - 1) as usize % self.others.len()],
        }
    }

    fn put(&self, number: u64, place: u64) -> Put {
        let entry = self.entry(number, place);
        let body = str::from_utf8(&entry.body).unwrap().replace(&entry.id, &id(number, place));
        let term = |value: &str| format!("{value}-{number}");
        Put {
            clinical_date: entry.clinical_date.clone(),
            status: entry.status.clone(),
            index_terms: entry.identifiers.iter().map(|it| IndexTerm::new(&it.system, term(&it.value))).collect(),
            ..Put::fhir(body)
        }
    }
}

/// As good as random, and the same whenever it is asked for.
fn id(number: u64, place: u64) -> String {
    Uuid::from_u128(fastrand::Rng::with_seed(number * RECORDS + place).u128(..)).to_string()
}
