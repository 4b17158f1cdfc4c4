//! Charts as PNG files: series of numbers over a shared axis.

use std::path::Path;

use arrowquant::error::{Error, Result};
use arrowquant::sink::StagedFile;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::iso_8859_1::{FONT_9X15, FONT_9X18_BOLD};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::{Circle, Line, PrimitiveStyle, Rectangle};
use embedded_graphics::text::{Alignment, Text};

/// Size of a picture in pixels.
const SIZE: Size = Size::new(1200, 640);

/// The first pixel of the plot, and the one after the last.
const LEFT: i32 = 90;
const RIGHT: i32 = 1170;
const TOP: i32 = 90;
const BOTTOM: i32 = 570;

const INK: Rgb888 = Rgb888::new(0x22, 0x26, 0x2e);
const GRID: Rgb888 = Rgb888::new(0xdd, 0xe1, 0xe8);

/// Colours that colour-blind readers can distinguish (Okabe and Ito 2008).
const COLOURS: &[Rgb888] = &[
    Rgb888::new(0xd5, 0x5e, 0x00),
    Rgb888::new(0x00, 0x72, 0xb2),
    Rgb888::new(0x00, 0x9e, 0x73),
    Rgb888::new(0xcc, 0x79, 0xa7),
    Rgb888::new(0xe6, 0x9f, 0x00),
    Rgb888::new(0x56, 0xb4, 0xe9),
];

/// A named series of numbers.
pub struct Series {
    pub name: String,
    /// One value for each place of the axis; missing ones are not drawn.
    pub values: Vec<Option<f64>>,
    /// Whether neighbouring points are connected.
    pub line: bool,
}

/// The contents of a chart.
pub struct Chart {
    pub title: String,
    /// Label below the axis.
    pub places: String,
    /// Label above the plot: what is measured.
    pub measure: String,
    pub series: Vec<Series>,
}

/// The pixels of a picture.
struct Picture(Vec<u8>);

impl OriginDimensions for Picture {
    fn size(&self) -> Size {
        SIZE
    }
}

impl DrawTarget for Picture {
    type Color = Rgb888;
    type Error = std::convert::Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(
        &mut self,
        pixels: I,
    ) -> std::result::Result<(), Self::Error> {
        for Pixel(Point { x, y }, colour) in pixels {
            let inside =
                (0..SIZE.width as i32).contains(&x) && (0..SIZE.height as i32).contains(&y);
            if inside {
                let at = 3 * (y as usize * SIZE.width as usize + x as usize);
                self.0[at..at + 3].copy_from_slice(&[colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

/// The mapping of numbers to positions on one side of the plot.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    /// Makes an axis that covers these, with a few round numbers.
    fn around(low: f64, high: f64) -> Self {
        let span = if high > low {
            high - low
        } else {
            high.abs().max(1.0)
        };
        let rough = span / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
        let step = step
            .into_iter()
            .find(|step| *step >= rough)
            .unwrap_or(10.0 * power);
        let low = (low / step).floor() * step;
        Self {
            low,
            high: ((low + span) / step).ceil().max(low / step + 1.0) * step,
            step,
        }
        .holding(high)
    }

    /// Extends the axis if rounding has left out the last number.
    fn holding(mut self, high: f64) -> Self {
        if self.high < high {
            self.high = (self.high + self.step).max(high);
        }
        self
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count).map(|i| self.low + i as f64 * self.step)
    }

    /// Returns the number of digits that distinguishes its numbers.
    fn digits(&self) -> usize {
        (-self.step.log10().floor()).max(0.0) as usize
    }

    fn y(&self, value: f64) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        BOTTOM - (share * f64::from(BOTTOM - TOP)).round() as i32
    }
}

impl Picture {
    fn text(&mut self, text: &str, at: Point, alignment: Alignment, colour: Rgb888) {
        let style = MonoTextStyle::new(&FONT_9X15, colour);
        let Ok(_) = Text::with_alignment(text, at, style, alignment).draw(self);
    }

    fn line(&mut self, from: Point, to: Point, colour: Rgb888, width: u32) {
        let style = PrimitiveStyle::with_stroke(colour, width);
        let Ok(()) = Line::new(from, to).into_styled(style).draw(self);
    }
}

impl Chart {
    /// Draws the chart into a PNG file, which appears complete at its path.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let failed = |error: png::EncodingError| Error::Io {
            path: path.to_owned(),
            action: "write",
            source: std::io::Error::other(error),
        };
        let mut file = StagedFile::create(path)?;
        let mut encoder = png::Encoder::new(&mut file, SIZE.width, SIZE.height);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().map_err(failed)?;
        writer.write_image_data(&self.draw().0).map_err(failed)?;
        writer.finish().map_err(failed)?;
        file.commit()
    }

    fn draw(&self) -> Picture {
        let mut picture = Picture(vec![0xff; 3 * (SIZE.width * SIZE.height) as usize]);
        let title = MonoTextStyle::new(&FONT_9X18_BOLD, INK);
        let Ok(_) = Text::new(&self.title, Point::new(LEFT, 28), title).draw(&mut picture);
        picture.text(
            &self.measure,
            Point::new(LEFT, TOP - 12),
            Alignment::Left,
            INK,
        );
        let all = || {
            self.series
                .iter()
                .flat_map(|series| series.values.iter().flatten())
                .filter(|value| value.is_finite())
        };
        let low = all().copied().fold(f64::INFINITY, f64::min);
        let high = all().copied().fold(f64::NEG_INFINITY, f64::max);
        let axis = match low.is_finite() && high.is_finite() {
            true => Axis::around(low, high),
            false => Axis::around(0.0, 1.0),
        };
        for tick in axis.ticks() {
            let y = axis.y(tick);
            picture.line(Point::new(LEFT, y), Point::new(RIGHT, y), GRID, 1);
            let label = format!("{tick:.digits$}", digits = axis.digits());
            picture.text(&label, Point::new(LEFT - 8, y + 5), Alignment::Right, INK);
        }
        let count = self
            .series
            .iter()
            .map(|series| series.values.len())
            .max()
            .unwrap_or(0);
        self.draw_places(&mut picture, count);
        for (series, &colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            series.draw(&mut picture, &axis, count, colour);
        }
        self.draw_legend(&mut picture);
        picture
    }

    /// Numbers places from 0.
    fn draw_places(&self, picture: &mut Picture, count: usize) {
        let axis = Axis::around(0.0, count.saturating_sub(1).max(1) as f64);
        let step = axis.step.max(1.0) as usize;
        for place in (0..count).step_by(step.max(1)) {
            let at = Point::new(x(place, count), BOTTOM + 20);
            picture.text(&place.to_string(), at, Alignment::Center, INK);
        }
        let under = Point::new((LEFT + RIGHT) / 2, BOTTOM + 46);
        picture.text(&self.places, under, Alignment::Center, INK);
    }

    fn draw_legend(&self, picture: &mut Picture) {
        let mut left = LEFT;
        for (series, &colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let mark = Rectangle::new(Point::new(left, 44), Size::new(14, 14));
            let Ok(()) = mark
                .into_styled(PrimitiveStyle::with_fill(colour))
                .draw(picture);
            picture.text(
                &series.name,
                Point::new(left + 20, 56),
                Alignment::Left,
                INK,
            );
            left += 44 + 9 * series.name.chars().count() as i32;
        }
    }
}

/// Returns the position of a place, out of this many.
fn x(place: usize, count: usize) -> i32 {
    let share = (place as f64 + 0.5) / count.max(1) as f64;
    LEFT + (share * f64::from(RIGHT - LEFT)).round() as i32
}

impl Series {
    fn draw(&self, picture: &mut Picture, axis: &Axis, count: usize, colour: Rgb888) {
        let radius = if count > 300 { 1 } else { 3 };
        let mut before: Option<Point> = None;
        for (place, value) in self.values.iter().enumerate() {
            let Some(value) = value.filter(|value| value.is_finite()) else {
                before = None;
                continue;
            };
            let at = Point::new(x(place, count), axis.y(value));
            if let Some(before) = before.filter(|_| self.line) {
                picture.line(before, at, colour, 2);
            }
            let dot = Circle::with_center(at, 2 * radius + 1);
            let Ok(()) = dot
                .into_styled(PrimitiveStyle::with_fill(colour))
                .draw(picture);
            before = Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_their_numbers_at_round_steps() {
        for (low, high) in [
            (0.0, 1.0),
            (-3.2, 47.0),
            (5.0, 5.0),
            (1e-6, 3e-6),
            (-2.0, -1.0),
        ] {
            let axis = Axis::around(low, high);
            assert!(axis.low <= low && axis.high >= high, "{low} {high}");
            assert!((2..=14).contains(&axis.ticks().count()), "{low} {high}");
            assert!(axis.y(high) >= TOP && axis.y(low) <= BOTTOM);
        }
    }

    #[test]
    fn dots_are_where_the_numbers_are() {
        let chart = Chart {
            title: "title".into(),
            places: "places".into(),
            measure: "measure".into(),
            series: vec![Series {
                name: "one".into(),
                values: vec![Some(0.0), None, Some(10.0)],
                line: false,
            }],
        };
        let picture = chart.draw();
        let axis = Axis::around(0.0, 10.0);
        let colour = |place, value| {
            let at = 3 * (axis.y(value) as usize * SIZE.width as usize + x(place, 3) as usize);
            [picture.0[at], picture.0[at + 1], picture.0[at + 2]]
        };
        let dot = [COLOURS[0].r(), COLOURS[0].g(), COLOURS[0].b()];
        assert_eq!((colour(0, 0.0), colour(2, 10.0)), (dot, dot));
        assert_ne!(colour(1, 5.0), dot);
    }
}
