//! What the documents show is what there is: the guide's programs are the programs, and links lead somewhere.

use std::path::{Path, PathBuf};

use super::source::root;

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// All code blocks of a language, one after the other.
fn blocks(markdown: &str, language: &str) -> String {
    let mut code = String::new();
    let mut inside = false;
    for line in markdown.lines() {
        match inside {
            false => inside = line == format!("```{language}"),
            true if line == "```" => inside = false,
            true => code.push_str(&format!("{line}\n")),
        }
    }
    code
}

/// Between two blocks a file may have empty lines.
fn lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.is_empty()).collect()
}

#[test]
fn the_guide_shows_the_programs_that_are_run() {
    let guide = read("docs/first-patient.md");
    for (language, program) in
        [("rust", "client/examples/first_patient.rs"), ("python", "tests/python/first_patient.py")]
    {
        let (shown, run) = (blocks(&guide, language), read(program));
        let first_difference = lines(&shown).into_iter().zip(lines(&run)).find(|(shown, run)| shown != run);
        assert_eq!(first_difference, None, "docs/first-patient.md (left) and {program} (right) differ");
        assert_eq!(lines(&shown).len(), lines(&run).len(), "docs/first-patient.md does not show all of {program}");
    }
}

fn markdown_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            markdown_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents = vec![root().join("README.md"), root().join("ARCHITECTURE.md")];
    markdown_below(&root().join("docs"), &mut documents);
    assert!(documents.len() > 20, "{documents:?}");
    let mut seen = 0;
    for document in &documents {
        let text = std::fs::read_to_string(document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            seen += 1;
            let path = document.parent().unwrap().join(target);
            assert!(path.exists(), "{}: there is no {target}", document.display());
        }
    }
    assert!(seen > 20, "only {seen} links were found");
}
