//! Where and why a text is not JSON, in the words of the parser that the recorded server uses.
//!
//! Clients see this text in a 422, position included, so it is worth its own little scanner; texts that are valid are
//! parsed elsewhere.

/// Position, in characters, and message of the first error in `text`; `None` where this scanner finds none.
pub(crate) fn first_error(text: &str) -> Option<(usize, &'static str)> {
    let mut scanner = Scanner { text: text.chars().collect(), at: 0 };
    scanner.space();
    scanner
        .value()
        .and_then(|()| {
            scanner.space();
            if scanner.at < scanner.text.len() { Err((scanner.at, "Extra data")) } else { Ok(()) }
        })
        .err()
}

struct Scanner {
    text: Vec<char>,
    at: usize,
}

type Scan = Result<(), (usize, &'static str)>;

impl Scanner {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t' | '\n' | '\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self) -> Scan {
        match self.peek() {
            Some('{') => self.object(),
            Some('[') => self.array(),
            Some('"') => self.string(),
            Some(character) if character == '-' || character.is_ascii_digit() => self.number(),
            _ => {
                let start = self.at;
                for word in ["true", "false", "null", "NaN", "Infinity"] {
                    let rest = &self.text[start..];
                    if rest.len() >= word.len() && word.chars().zip(rest).all(|(one, other)| one == *other) {
                        self.at += word.len();
                        return Ok(());
                    }
                }
                Err((start, "Expecting value"))
            }
        }
    }

    fn object(&mut self) -> Scan {
        self.at += 1;
        self.space();
        if self.peek() == Some('}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            if self.peek() != Some('"') {
                return Err((self.at, "Expecting property name enclosed in double quotes"));
            }
            self.string()?;
            self.space();
            if self.peek() != Some(':') {
                return Err((self.at, "Expecting ':' delimiter"));
            }
            self.at += 1;
            self.space();
            self.value()?;
            self.space();
            match self.peek() {
                Some('}') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(',') => self.at += 1,
                _ => return Err((self.at, "Expecting ',' delimiter")),
            }
            self.space();
        }
    }

    fn array(&mut self) -> Scan {
        self.at += 1;
        self.space();
        if self.peek() == Some(']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value()?;
            self.space();
            match self.peek() {
                Some(']') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(',') => self.at += 1,
                _ => return Err((self.at, "Expecting ',' delimiter")),
            }
            self.space();
        }
    }

    fn string(&mut self) -> Scan {
        let start = self.at;
        self.at += 1;
        loop {
            match self.peek() {
                None => return Err((start, "Unterminated string starting at")),
                Some('"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some('\\') => self.escape(start)?,
                Some(character) if u32::from(character) < 0x20 => {
                    return Err((self.at, "Invalid control character at"));
                }
                Some(_) => self.at += 1,
            }
        }
    }

    fn escape(&mut self, start: usize) -> Scan {
        let backslash = self.at;
        match self.text.get(backslash + 1) {
            None => Err((start, "Unterminated string starting at")),
            Some('u') => {
                let digits = self.text.get(backslash + 2..backslash + 6).unwrap_or_default();
                if digits.len() == 4 && digits.iter().all(char::is_ascii_hexdigit) {
                    self.at += 6;
                    Ok(())
                } else {
                    Err((backslash + 1, "Invalid \\uXXXX escape"))
                }
            }
            Some('"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => {
                self.at += 2;
                Ok(())
            }
            Some(_) => Err((backslash, "Invalid \\escape")),
        }
    }

    fn number(&mut self) -> Scan {
        let start = self.at;
        if self.peek() == Some('-') {
            self.at += 1;
        }
        if !self.peek().is_some_and(|character| character.is_ascii_digit()) {
            return Err((start, "Expecting value"));
        }
        while self.peek().is_some_and(|character| character.is_ascii_digit() || ".eE+-".contains(character)) {
            self.at += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::first_error;

    #[test]
    fn positions_and_words_are_those_of_the_original() {
        for (text, expected) in [
            (r#"{"prompt": "x","#, Some((15, "Expecting property name enclosed in double quotes"))),
            (r#"{"prompt" "x"}"#, Some((10, "Expecting ':' delimiter"))),
            (r#"{"prompt": "x" "y""#, Some((15, "Expecting ',' delimiter"))),
            (r#"{"prompt": }"#, Some((11, "Expecting value"))),
            (r#"{"prompt": "x"#, Some((11, "Unterminated string starting at"))),
            ("{} {}", Some((3, "Extra data"))),
            ("prompt=x", Some((0, "Expecting value"))),
            (r#"{"prompt": [1, -2.5e3, true, null, {"a": "é"}]}"#, None),
        ] {
            assert_eq!(first_error(text), expected, "{text}");
        }
    }
}
