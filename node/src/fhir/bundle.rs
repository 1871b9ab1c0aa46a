//! One FHIR R4 bundle: the records of one patient, and those that patients share.
//!
//! Owns: which entries a bundle may have, the chart and the ids of each, and the position that an error names.
//!
//! A bundle is taken whole or not at all: whoever gets `Ok` has every entry, checked. Its first entry must be the
//! `Patient`; that id names the patient's chart. One record may come twice with equal tokens, and counts once.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fmt;

use bytes::Bytes;

use super::header::header_fields;
use super::identifier::{Identifier, identifiers};
use super::json::{JsonError, JsonFault, Scanner, decode, utf8};
use super::minify::strip;
use super::{BODY_BYTES_MAX, ID_BYTES_MAX};

/// Resources that belong to no patient. Each type has a shared chart of that name.
const SHARED_TYPES: [&str; 6] =
    ["Practitioner", "PractitionerRole", "Organization", "Location", "HealthcareService", "Medication"];

/// The chart a record belongs to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum ChartName {
    /// The patient's id.
    Patient(String),
    /// The name of a chart that patients share: a resource type.
    Shared(String),
}

/// Where in a bundle something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// As in `Bundle.entry[0]`; `None` outside of any entry.
    pub entry: Option<usize>,
    /// From the start of the bundle's text.
    pub byte: usize,
}

/// One record.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    pub chart: ChartName,
    pub record_type: String,
    pub id: String,
    /// The resource, token by token, without white space between them.
    pub body: Bytes,
    /// Empty when the resource names none.
    pub clinical_date: String,
    /// Empty when the resource names none.
    pub status: String,
    /// Of a Patient: what it can be found by.
    pub identifiers: Vec<Identifier>,
    pub position: Position,
}

/// What a bundle holds.
#[derive(Debug)]
pub struct Bundle {
    /// Distinct records, in the bundle's order.
    pub entries: Vec<Entry>,
    /// Entries that repeated one of these.
    pub repeated: usize,
}

/// Why a bundle is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error(transparent)]
    Json(#[from] JsonFault),
    #[error("not a FHIR bundle")]
    NotABundle,
    #[error("not a patient bundle: its first entry is no Patient")]
    NotAPatient,
    #[error("an entry without a resource")]
    NoResource,
    #[error("a resource without a resourceType of 1 to {ID_BYTES_MAX} bytes")]
    BadType,
    #[error("a resource without an id of 1 to {ID_BYTES_MAX} bytes")]
    BadId,
    #[error("a member that must be unique comes twice")]
    Repeated,
    #[error("a resource of more than {BODY_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the same type and id as an entry before, with other content")]
    Contradiction,
}

/// A fault and where it is. Holds nothing of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{position}: {fault}")]
pub struct BundleError {
    pub position: Position,
    pub fault: Fault,
}

/// Reads one bundle from its text.
pub fn read_bundle(text: &[u8]) -> Result<Bundle, BundleError> {
    let text = utf8(text)?;
    let mut scanner = Scanner::new(text);
    if scanner.peek() == Some(b'[') {
        return Err(fault_at(None, 0, Fault::NotABundle));
    }
    let (mut is_bundle, mut has_entries) = (false, false);
    let mut collected = Collected::default();
    scanner.members(|scanner, name| {
        let byte = scanner.position();
        match decode(name).as_deref() {
            Some("resourceType") => {
                set_once(&mut is_bundle, byte)?;
                if decode(scanner.value()?).as_deref() != Some("Bundle") {
                    return Err(fault_at(None, byte, Fault::NotABundle));
                }
            }
            Some("entry") if scanner.peek() == Some(b'[') => {
                set_once(&mut has_entries, byte)?;
                read_entries(scanner, &mut collected)?;
            }
            _ => drop(scanner.value()?),
        }
        Ok::<(), BundleError>(())
    })?;
    scanner.end()?;
    match (is_bundle, collected.patient) {
        (false, _) => Err(fault_at(None, 0, Fault::NotABundle)),
        (true, None) => Err(fault_at(None, 0, Fault::NotAPatient)),
        (true, Some(_)) => Ok(Bundle { entries: collected.entries, repeated: collected.repeated }),
    }
}

#[derive(Default)]
struct Collected {
    patient: Option<String>,
    entries: Vec<Entry>,
    places: HashMap<(String, String), usize>,
    repeated: usize,
}

fn read_entries(scanner: &mut Scanner<'_>, collected: &mut Collected) -> Result<(), BundleError> {
    scanner.items(|scanner, index| {
        let start = scanner.position();
        let mut resource = None;
        let within = |error: JsonError| fault_at(Some(index), error.byte, error.fault.into());
        if scanner.peek() != Some(b'{') {
            scanner.value().map_err(within)?;
            return Err(fault_at(Some(index), start, Fault::NoResource));
        }
        scanner
            .members(|scanner, name| {
                let byte = scanner.position();
                let span = scanner.value()?;
                if decode(name).as_deref() == Some("resource") && resource.replace((byte, span)).is_some() {
                    return Err(fault_at(Some(index), byte, Fault::Repeated));
                }
                Ok::<(), BundleError>(())
            })
            .map_err(|error| error.in_entry(index))?;
        match resource {
            Some((byte, span)) if span.starts_with('{') => {
                let at = Position { entry: Some(index), byte };
                collected.add(at, span).map_err(|fault| BundleError { position: at, fault })
            }
            _ => Err(fault_at(Some(index), start, Fault::NoResource)),
        }
    })
}

impl Collected {
    fn add(&mut self, position: Position, resource: &str) -> Result<(), Fault> {
        let (record_type, id) = read_ids(resource)?;
        let patient = match &self.patient {
            Some(patient) => patient.clone(),
            None if record_type == "Patient" => self.patient.insert(id.clone()).clone(),
            None => return Err(Fault::NotAPatient),
        };
        let body = strip(resource);
        if body.len() > BODY_BYTES_MAX {
            return Err(Fault::TooLarge);
        }
        match self.places.entry((record_type.clone(), id.clone())) {
            Slot::Occupied(place) if self.entries[*place.get()].body == body => self.repeated += 1,
            Slot::Occupied(_) => return Err(Fault::Contradiction),
            Slot::Vacant(place) => {
                place.insert(self.entries.len());
                let header = header_fields(resource).map_err(|error| error.fault)?;
                let identifiers = match record_type == "Patient" {
                    true => identifiers(resource).map_err(|error| error.fault)?,
                    false => Vec::new(),
                };
                self.entries.push(Entry {
                    chart: match SHARED_TYPES.contains(&record_type.as_str()) {
                        true => ChartName::Shared(record_type.clone()),
                        false => ChartName::Patient(patient),
                    },
                    record_type,
                    id,
                    body: body.into(),
                    clinical_date: header.clinical_date,
                    status: header.status,
                    identifiers,
                    position,
                });
            }
        }
        Ok(())
    }
}

/// Type and id of a resource; each must be there once.
fn read_ids(resource: &str) -> Result<(String, String), Fault> {
    let (mut record_type, mut id) = (None, None);
    Scanner::new(resource)
        .members(|scanner, name| {
            let span = scanner.value()?;
            let slot = match decode(name).as_deref() {
                Some("resourceType") => &mut record_type,
                Some("id") => &mut id,
                _ => return Ok(()),
            };
            if slot.replace(span).is_some() {
                return Err(fault_at(None, 0, Fault::Repeated));
            }
            Ok(())
        })
        .map_err(|error: BundleError| error.fault)?;
    let record_type = record_type.and_then(usable_id).ok_or(Fault::BadType)?;
    Ok((record_type, id.and_then(usable_id).ok_or(Fault::BadId)?))
}

fn usable_id(token: &str) -> Option<String> {
    let id = decode(token)?;
    let usable = (1..=ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control);
    usable.then(|| id.into_owned())
}

fn set_once(flag: &mut bool, byte: usize) -> Result<(), BundleError> {
    if std::mem::replace(flag, true) { Err(fault_at(None, byte, Fault::Repeated)) } else { Ok(()) }
}

fn fault_at(entry: Option<usize>, byte: usize, fault: Fault) -> BundleError {
    BundleError { position: Position { entry, byte }, fault }
}

impl BundleError {
    fn in_entry(mut self, index: usize) -> Self {
        self.position.entry.get_or_insert(index);
        self
    }
}

impl From<JsonError> for BundleError {
    fn from(error: JsonError) -> Self {
        fault_at(None, error.byte, error.fault.into())
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry {
            Some(entry) => write!(f, "Bundle.entry[{entry}], byte {}", self.byte),
            None => write!(f, "byte {}", self.byte),
        }
    }
}

// Ids of patients and records say who is ill: they stay out of every log line.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("position", &self.position).field("body_bytes", &self.body.len()).finish()
    }
}

impl fmt::Debug for ChartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Patient(_) => f.write_str("Patient(…)"),
            Self::Shared(_) => f.write_str("Shared(…)"),
        }
    }
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
