//! Pictures that a person likes to look at: hills under a sky, drawn from a prompt and a seed.
//!
//! Colours are computed by row and outlines by column, so that a pixel costs next to nothing. The same scene can be
//! drawn at any size, which is how a preview resembles the picture that it becomes.

use std::f32::consts::TAU;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Pixels, three bytes each, row by row.
#[derive(Clone, Debug)]
pub(crate) struct Pixels {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) rgb: Vec<u8>,
}

type Colour = [f32; 3];

/// One layer of hills.
#[derive(Debug)]
struct Hill {
    colour: Colour,
    base: f32,
    waves: [(f32, f32, f32); 3],
}

/// What to draw; independent of size.
#[derive(Debug)]
pub(crate) struct Scene {
    noise: u64,
    top: Colour,
    horizon: Colour,
    sun: (f32, f32, f32),
    sun_colour: Colour,
    hills: Vec<Hill>,
}

impl Scene {
    /// The scene of `prompt` and `seed`; `mix` stands for an image it starts from, 0 for none.
    pub(crate) fn new(prompt: &str, seed: i64, mix: u64) -> Self {
        let mut hasher = DefaultHasher::new();
        (prompt, mix).hash(&mut hasher);
        let mood = hasher.finish();
        seed.hash(&mut hasher);
        let noise = hasher.finish();
        // The prompt sets the colours, the seed the shapes: siblings of one prompt look related.
        let mut colours = StdRng::seed_from_u64(mood);
        let mut shapes = StdRng::seed_from_u64(noise);
        let hue: f32 = colours.random_range(0.0..1.0);
        let spread: f32 = colours.random_range(0.06..0.22);
        let top = hsv(hue, 0.62, 0.50);
        let horizon = hsv(hue + spread, 0.42, 0.97);
        let ground = hue + 0.5 - spread * colours.random_range(0.3..1.2);
        let layers: u8 = shapes.random_range(3..=5);
        let hills = (0..layers)
            .map(|layer| {
                let depth = (f32::from(layer) + 1.0) / f32::from(layers);
                let near = hsv(ground, 0.5, 0.34);
                let mut wave = |low: f32, high: f32, size: f32| {
                    (
                        shapes.random_range(low..high),
                        shapes.random_range(0.0..TAU),
                        size * (0.4 + 0.6 * depth),
                    )
                };
                let waves = [wave(2.0, 5.0, 0.055), wave(6.0, 11.0, 0.022), wave(14.0, 27.0, 0.007)];
                Hill { colour: blend(horizon, near, depth.powf(0.8)), base: 0.46 + 0.40 * depth, waves }
            })
            .collect();
        let sun = (
            shapes.random_range(0.15..0.85),
            shapes.random_range(0.14..0.40),
            shapes.random_range(0.04..0.10),
        );
        Self { noise, top, horizon, sun, sun_colour: hsv(hue + spread * 2.0, 0.22, 1.0), hills }
    }

    /// Draws the scene in `width`×`height` pixels.
    pub(crate) fn draw(&self, width: u32, height: u32) -> Pixels {
        let (columns, rows) = (width.max(1), height.max(1));
        let outlines: Vec<Outline> = self.hills.iter().map(|hill| hill.outline(columns, rows)).collect();
        let mut rgb = Vec::with_capacity(columns as usize * rows as usize * 3);
        for row in 0..rows {
            let y = row as f32;
            let down = y / rows as f32;
            // Nearly every pixel lies wholly in one layer, so rows are filled before outlines are drawn over them.
            let covering = outlines.iter().rposition(|outline| y - outline.lowest >= 0.5);
            let mut line = if let Some(hill) = covering {
                self.hills[hill].shade(down).map(to_byte).repeat(columns as usize)
            } else {
                let sky = blend(self.top, self.horizon, (down * 1.6).min(1.0));
                let mut line = sky.map(to_byte).repeat(columns as usize);
                self.light(&mut line, sky, y, columns, rows);
                line
            };
            for (hill, outline) in self.hills.iter().zip(&outlines).skip(covering.map_or(0, |hill| hill + 1))
            {
                if y - outline.highest > -0.5 {
                    outline.cover(&mut line, y, hill.shade(down));
                }
            }
            rgb.extend_from_slice(&line);
        }
        Pixels { width: columns, height: rows, rgb }
    }

    /// Lights one row of sky by the sun and its glow.
    fn light(&self, line: &mut [u8], sky: Colour, y: f32, columns: u32, rows: u32) {
        let radius = self.sun.2 * rows as f32;
        let reach = radius * 3.5;
        let dy = y - self.sun.1 * rows as f32;
        if dy.abs() >= reach {
            return;
        }
        for (column, pixel) in line.chunks_exact_mut(3).enumerate() {
            let dx = column as f32 - self.sun.0 * columns as f32;
            let square = dx * dx + dy * dy;
            if square < reach * reach {
                let distance = square.sqrt();
                let glow = 1.0 - distance / reach;
                let disc = (radius - distance + 0.5).clamp(0.0, 1.0);
                let lit = blend(sky, self.sun_colour, disc.max(0.55 * glow * glow));
                pixel.copy_from_slice(&lit.map(to_byte));
            }
        }
    }

    /// Draws the scene as it looks after `done` (0 to 1) of the steps: noise that clears up.
    pub(crate) fn draw_unfinished(&self, width: u32, height: u32, done: f32) -> Pixels {
        let mut pixels = self.draw(width, height);
        let grain = (1.0 - done.clamp(0.0, 1.0)).powf(0.7);
        let mut noise = self.noise | 1;
        for byte in &mut pixels.rgb {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            let random = f32::from(noise.to_le_bytes()[3]) / 255.0;
            *byte = to_byte(f32::from(*byte) / 255.0 * (1.0 - grain) + (0.2 + 0.6 * random) * grain);
        }
        pixels
    }
}

impl Hill {
    /// The edge of the hill against what lies behind it.
    fn outline(&self, columns: u32, rows: u32) -> Outline {
        let edge: Vec<f32> = (0..columns)
            .map(|column| {
                let x = column as f32 / columns as f32;
                let wave: f32 =
                    self.waves.iter().map(|(pitch, phase, size)| (x * pitch + phase).sin() * size).sum();
                (self.base + wave) * rows as f32
            })
            .collect();
        let highest = edge.iter().copied().fold(f32::INFINITY, f32::min);
        let lowest = edge.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Outline { edge, highest, lowest }
    }

    /// The hill's colour this far down the picture; it darkens towards its foot.
    fn shade(&self, down: f32) -> Colour {
        let light = 1.0 - 0.45 * (down - self.base).max(0.0);
        self.colour.map(|channel| channel * light)
    }
}

/// Where a hill begins in each column, in pixels from the top.
#[derive(Debug)]
struct Outline {
    edge: Vec<f32>,
    highest: f32,
    lowest: f32,
}

impl Outline {
    /// Paints the hill over the row at `y`, softly at its edge.
    fn cover(&self, line: &mut [u8], y: f32, shade: Colour) {
        let plain = shade.map(to_byte);
        for (edge, pixel) in self.edge.iter().zip(line.chunks_exact_mut(3)) {
            let depth = y - edge + 0.5;
            if depth >= 1.0 {
                pixel.copy_from_slice(&plain);
            } else if depth > 0.0 {
                for (channel, colour) in pixel.iter_mut().zip(shade) {
                    let behind = f32::from(*channel) / 255.0;
                    *channel = to_byte(behind + (colour - behind) * depth);
                }
            }
        }
    }
}

/// Puts pictures of one size side by side, as few rows as columns allow.
pub(crate) fn grid(tiles: &[Pixels]) -> Pixels {
    let Some(first) = tiles.first() else { return Pixels { width: 0, height: 0, rgb: Vec::new() } };
    let columns = (1..=tiles.len()).find(|columns| columns * columns >= tiles.len()).unwrap_or(1);
    let rows = tiles.len().div_ceil(columns);
    let (width, height) = (first.width as usize, first.height as usize);
    let mut rgb = vec![0; columns * width * rows * height * 3];
    for (index, tile) in tiles.iter().enumerate() {
        let (column, row) = (index % columns, index / columns);
        for y in 0..height {
            let from = y * width * 3;
            let to = ((row * height + y) * columns * width + column * width) * 3;
            rgb[to..to + width * 3].copy_from_slice(&tile.rgb[from..from + width * 3]);
        }
    }
    let size = |tile: u32, count: usize| tile * u32::try_from(count).unwrap_or(1);
    Pixels { width: size(first.width, columns), height: size(first.height, rows), rgb }
}

fn blend(from: Colour, to: Colour, share: f32) -> Colour {
    std::array::from_fn(|channel| from[channel] + (to[channel] - from[channel]) * share)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a byte first")]
fn to_byte(channel: f32) -> u8 {
    (channel.clamp(0.0, 1.0) * 255.0) as u8
}

fn hsv(hue: f32, saturation: f32, value: f32) -> Colour {
    [5.0, 3.0, 1.0].map(|offset: f32| {
        let k = (offset + hue.rem_euclid(1.0) * 6.0) % 6.0;
        value - value * saturation * k.min(4.0 - k).clamp(0.0, 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::{Pixels, Scene, grid};

    fn difference(one: &Pixels, other: &Pixels) -> u64 {
        one.rgb.iter().zip(&other.rgb).map(|(one, other)| u64::from(one.abs_diff(*other))).sum()
    }

    #[test]
    fn prompt_and_seed_decide() {
        let scene = |prompt, seed| Scene::new(prompt, seed, 0).draw(64, 48);
        assert_eq!(scene("a cat", 1).rgb, scene("a cat", 1).rgb);
        assert_ne!(scene("a cat", 1).rgb, scene("a cat", 2).rgb);
        assert_ne!(scene("a cat", 1).rgb, scene("a dog", 1).rgb);
        assert_ne!(scene("a cat", 1).rgb, Scene::new("a cat", 1, 7).draw(64, 48).rgb);
        assert_eq!(scene("a cat", 1).rgb.len(), 64 * 48 * 3);
    }

    #[test]
    fn previews_sharpen() {
        let scene = Scene::new("a cat", 1, 0);
        let whole = scene.draw(64, 64);
        let distances: Vec<u64> = [0.1, 0.4, 0.7, 1.0]
            .map(|done| difference(&whole, &scene.draw_unfinished(64, 64, done)))
            .to_vec();
        assert!(distances.is_sorted_by(|earlier, later| earlier > later), "{distances:?}");
    }

    #[test]
    fn two_tiles_lie_side_by_side() {
        let tile = Scene::new("a cat", 1, 0).draw(16, 16);
        let two = grid(&[tile.clone(), tile.clone()]);
        assert_eq!((two.width, two.height, two.rgb.len()), (32, 16, 32 * 16 * 3));
        let three = grid(&[tile.clone(), tile.clone(), tile]);
        assert_eq!((three.width, three.height), (32, 32));
    }
}
