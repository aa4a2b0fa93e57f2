//! Rows in columns, as wide as they need to be.

/// A table with a header.
#[derive(Debug)]
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// An empty table.
    pub fn new(header: &[&str]) -> Self {
        Self(vec![header.iter().map(|&cell| cell.to_owned()).collect()])
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }

    /// Whether there is nothing but the header.
    pub fn is_empty(&self) -> bool {
        self.0.len() == 1
    }

    /// The lines, without spaces at their ends.
    pub fn text(&self) -> String {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths = vec![0; columns];
        for row in &self.0 {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = length(cell).max(*width);
            }
        }
        let line = |row: &Vec<String>| {
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell}{}", " ".repeat(width.saturating_sub(length(cell)))));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.0.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

fn length(cell: &str) -> usize {
    cell.chars().count()
}

/// A text on one line, of at most `most` characters, without what a terminal would obey.
pub fn shortened(text: &str, most: usize) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if let Some((end, _)) = line.char_indices().nth(most) {
        line.truncate(end);
        line.pop();
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["ID", "STATE"]);
        table.row(vec!["längst".to_owned(), "idle".to_owned()]);
        table.row(vec!["b".to_owned(), String::new()]);
        assert_eq!(table.text(), "ID      STATE\nlängst  idle\nb");
    }

    #[test]
    fn a_prompt_cannot_drive_the_terminal() {
        assert_eq!(shortened("a\x1b[2J\nb", 20), "a [2J b");
        assert_eq!(shortened("abcdef", 4), "abc…");
        assert_eq!(shortened("abcd", 4), "abcd");
    }
}
