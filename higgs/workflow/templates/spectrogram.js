// Mel-scaled spectrograms on one scale: 0 to 12 kHz upwards, 80 dB of level by colour, 100 columns a second at most.
"use strict";

const SIZE = 1024;
const RANGE = 80; // dB below the level of a full-scale sine
const HIGHEST = 12000;
const COLOURS = [[0, 0, 4], [59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]];

// The spectrum of SIZE real samples in place: [re], [im] by the radix-2 FFT (Cooley and Tukey 1965).
function transform(re, im) {
  for (let i = 1, j = 0; i < SIZE; i += 1) {
    let bit = SIZE >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [re[i], re[j]] = [re[j], re[i]];
  }
  for (let size = 2; size <= SIZE; size *= 2) {
    for (let k = 0; k < size / 2; k += 1) {
      const angle = (-2 * Math.PI * k) / size;
      const c = Math.cos(angle);
      const s = Math.sin(angle);
      for (let a = k; a < SIZE; a += size) {
        const b = a + size / 2;
        const x = re[b] * c - im[b] * s;
        const y = re[b] * s + im[b] * c;
        re[b] = re[a] - x;
        im[b] = im[a] - y;
        re[a] += x;
        im[a] += y;
      }
    }
  }
}

function colour(level) {
  const place = Math.max(0, Math.min(1, level)) * (COLOURS.length - 1);
  const below = Math.min(COLOURS.length - 2, Math.floor(place));
  return COLOURS[below].map((value, i) => value + (place - below) * (COLOURS[below + 1][i] - value));
}

function drawSpectrogram(canvas, buffer) {
  const samples = buffer.getChannelData(0);
  const width = Math.max(8, Math.min(800, Math.round(buffer.duration * 100)));
  const height = 56;
  canvas.width = width;
  canvas.height = height;
  const paint = canvas.getContext("2d");
  const image = paint.createImageData(width, height);
  const mel = (hertz) => Math.log1p(hertz / 700);
  const bins = Array.from({ length: height + 1 }, (_, y) => {
    const hertz = 700 * Math.expm1((y / height) * mel(Math.min(HIGHEST, buffer.sampleRate / 2)));
    return (hertz / buffer.sampleRate) * SIZE;
  });
  for (let x = 0; x < width; x += 1) {
    const re = new Float64Array(SIZE);
    const im = new Float64Array(SIZE);
    const start = Math.round(((x + 0.5) / width) * samples.length) - SIZE / 2;
    for (let i = 0; i < SIZE; i += 1) {
      const window = 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE);
      re[i] = (samples[start + i] || 0) * window;
    }
    transform(re, im);
    for (let y = 0; y < height; y += 1) {
      let power = 0;
      const last = Math.max(Math.floor(bins[y]) + 1, Math.ceil(bins[y + 1]));
      for (let bin = Math.floor(bins[y]); bin < last; bin += 1) power = Math.max(power, re[bin] ** 2 + im[bin] ** 2);
      const decibels = 10 * Math.log10(power / (SIZE / 4) ** 2 + 1e-12);
      const [r, g, b] = colour(1 + decibels / RANGE);
      image.data.set([r, g, b, 255], 4 * ((height - 1 - y) * width + x));
    }
  }
  paint.putImageData(image, 0, 0);
}
