//! `strftime_now`: the time as the caller has it, in the formats of C's `strftime` and its English names.

use std::fmt::Write as _;

/// A moment as clocks and calendars show it, without a time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are what they are called
pub struct Now {
    pub year: i32,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
    pub microsecond: u32,
    /// 0 is Monday.
    pub weekday: u8,
    /// 1 is the first of January.
    pub day_of_year: u16,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

impl Now {
    /// The moment in this format; what is no directive stands as it is.
    pub(super) fn format(&self, format: &str) -> String {
        let (mut out, mut characters) = (String::new(), format.chars());
        while let Some(character) = characters.next() {
            if character != '%' {
                out.push(character);
                continue;
            }
            let rest = characters.as_str();
            let plain = rest.starts_with('-');
            let Some(directive) = rest.chars().nth(usize::from(plain)) else {
                out.push('%');
                continue;
            };
            characters.nth(usize::from(plain));
            let mut written = String::new();
            if self.write(directive, &mut written) {
                let trimmed = written.trim_start_matches(['0', ' ']);
                let short = if trimmed.is_empty() { "0" } else { trimmed };
                out.push_str(if plain && written.starts_with(['0', ' ']) { short } else { &written });
            } else {
                out.push('%');
                out.push_str(if plain { "-" } else { "" });
                out.push(directive);
            }
        }
        out
    }

    fn write(&self, directive: char, out: &mut String) -> bool {
        let Self { year, month, day, hour, minute, second, .. } = *self;
        let name = |names: &[&'static str], index: u8| names.get(usize::from(index)).copied().unwrap_or("");
        let short = |name: &'static str| name.get(..3).unwrap_or(name);
        let (month_name, day_name) = (name(&MONTHS, month.wrapping_sub(1)), name(&DAYS, self.weekday));
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        let half = if hour < 12 { "AM" } else { "PM" };
        let sunday_first = (self.weekday + 1) % 7;
        let week = |first: u8| (self.day_of_year + 6 - u16::from(first)) / 7;
        let _ = match directive {
            'Y' => write!(out, "{year}"),
            'y' => write!(out, "{:02}", year.rem_euclid(100)),
            'C' => write!(out, "{:02}", year.div_euclid(100)),
            'm' => write!(out, "{month:02}"),
            'd' => write!(out, "{day:02}"),
            'e' => write!(out, "{day:2}"),
            'B' => write!(out, "{month_name}"),
            'b' | 'h' => write!(out, "{}", short(month_name)),
            'A' => write!(out, "{day_name}"),
            'a' => write!(out, "{}", short(day_name)),
            'H' => write!(out, "{hour:02}"),
            'I' => write!(out, "{twelve:02}"),
            'M' => write!(out, "{minute:02}"),
            'S' => write!(out, "{second:02}"),
            'f' => write!(out, "{:06}", self.microsecond),
            'p' => write!(out, "{half}"),
            'j' => write!(out, "{:03}", self.day_of_year),
            'w' => write!(out, "{sunday_first}"),
            'u' => write!(out, "{}", self.weekday + 1),
            'U' => write!(out, "{:02}", week(sunday_first)),
            'W' => write!(out, "{:02}", week(self.weekday)),
            'F' => write!(out, "{year}-{month:02}-{day:02}"),
            'D' | 'x' => write!(out, "{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            'T' | 'X' => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            'R' => write!(out, "{hour:02}:{minute:02}"),
            'r' => write!(out, "{twelve:02}:{minute:02}:{second:02} {half}"),
            'c' => write!(
                out,
                "{} {} {day:2} {hour:02}:{minute:02}:{second:02} {year}",
                short(day_name),
                short(month_name)
            ),
            'n' => writeln!(out),
            't' => write!(out, "\t"),
            '%' => write!(out, "%"),
            'Z' | 'z' => Ok(()), // no time zone
            _ => return false,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_those_of_c() {
        let now = Now {
            year: 2024,
            month: 7,
            day: 4,
            hour: 0,
            minute: 5,
            second: 9,
            microsecond: 42,
            weekday: 3,
            day_of_year: 186,
        };
        for (format, written) in [
            ("%d %b %Y", "04 Jul 2024"),
            ("%-d %B, %A", "4 July, Thursday"),
            ("%H:%M %I %p %-I", "00:05 12 AM 12"),
            ("%j %w %u %U %W %y", "186 4 4 26 27 24"),
            ("%F %T %D %R", "2024-07-04 00:05:09 07/04/24 00:05"),
            ("%c|%e|%f|%-H", "Thu Jul  4 00:05:09 2024| 4|000042|0"),
            ("100%% %Q %", "100% %Q %"),
        ] {
            assert_eq!(now.format(format), written);
        }
    }
}
