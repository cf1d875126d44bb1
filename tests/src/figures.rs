//! What nodes tell Prometheus, read back: the text of `/metrics` goes in, a figure comes out.

/// The sum of the figures that have this name and all these labels; `None` if there is none.
pub fn figure(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let line = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let (found, found_labels) = series.split_once('{').unwrap_or((series, ""));
        let fits = found == name && labels.iter().all(|label| found_labels.contains(label));
        fits.then(|| value.parse::<f64>().expect("Prometheus' values are numbers"))
    };
    let found: Vec<f64> = text.lines().filter(|line| !line.starts_with('#')).filter_map(line).collect();
    (!found.is_empty()).then(|| found.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::figure;

    #[test]
    fn figures_are_added_over_what_is_not_asked_for() {
        let text =
            "# TYPE a counter\na{node=\"1\",by=\"x\"} 2\na{node=\"2\",by=\"x\"} 3\na{by=\"y\"} 5\nab 7\n";
        assert_eq!(figure(text, "a", &["by=\"x\""]), Some(5.0));
        assert_eq!((figure(text, "a", &[]), figure(text, "ab", &[])), (Some(10.0), Some(7.0)));
        assert_eq!((figure(text, "a", &["by=\"z\""]), figure(text, "b", &[])), (None, None));
    }
}
