// A drawing, made into an image as those of MNIST were.

export const SIZE = 28;
const BOX = 20;
// MNIST's centres of mass lie at the middle of pixel (14, 14).
const CENTRE = 14;

/**
 * The ink's box, 20 pixels long, on a field of 28 x 28, by its centre of mass.
 *
 * @param {Uint8ClampedArray} rgba Pixels of a canvas; ink is what is opaque.
 * @param {number} width Of the canvas.
 * @return {?Float32Array} 28 x 28 values, 255 for ink; null without any ink.
 */
export function mnistImage(rgba, width) {
  const box = inkBox(rgba, width);
  if (!box) return null;
  const scale = BOX / Math.max(box.width, box.height);
  const columns = Math.max(1, Math.round(box.width * scale));
  const rows = Math.max(1, Math.round(box.height * scale));
  const small = shrink(rgba, width, box, columns, rows);
  return centred(small, columns, rows);
}

/** The smallest box with all ink, or null. */
function inkBox(rgba, width) {
  let [left, top, right, bottom] = [Infinity, Infinity, -1, -1];
  for (let y = 0, i = 3; i < rgba.length; y++) {
    for (let x = 0; x < width; x++, i += 4) {
      if (rgba[i] === 0) continue;
      if (x < left) left = x;
      if (x > right) right = x;
      if (y < top) top = y;
      bottom = y;
    }
  }
  if (right < 0) return null;
  return { left, top, width: right - left + 1, height: bottom - top + 1 };
}

/** The mean ink under each of the small image's pixels. */
function shrink(rgba, width, box, columns, rows) {
  const across = shares(box.width, columns);
  const down = shares(box.height, rows);
  const small = new Float32Array(columns * rows);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      let sum = 0;
      for (const [y, high] of down[row]) {
        const start = (box.top + y) * width + box.left;
        for (const [x, wide] of across[column]) {
          sum += high * wide * rgba[4 * (start + x) + 3];
        }
      }
      small[row * columns + column] = sum;
    }
  }
  return small;
}

/** For each of `to` equal parts of a line of `from` pixels: pixel and share. */
function shares(from, to) {
  const step = from / to;
  return Array.from({ length: to }, (_, part) => {
    const begin = part * step;
    const end = begin + step;
    const pixels = [];
    for (let i = Math.floor(begin); i < Math.min(from, end); i++) {
      const share = (Math.min(i + 1, end) - Math.max(i, begin)) / step;
      pixels.push([i, share]);
    }
    return pixels;
  });
}

function centred(small, columns, rows) {
  let [mass, x, y] = [0, 0, 0];
  small.forEach((value, i) => {
    mass += value;
    x += value * (i % columns);
    y += value * Math.floor(i / columns);
  });
  const left = place(x / mass, columns);
  const top = place(y / mass, rows);
  const image = new Float32Array(SIZE * SIZE);
  for (let row = 0; row < rows; row++) {
    const line = small.subarray(row * columns, (row + 1) * columns);
    image.set(line, (top + row) * SIZE + left);
  }
  return image;
}

/** Where `length` pixels begin, so that all of them are on the field. */
function place(centre, length) {
  const begin = Math.round(CENTRE - centre);
  return Math.max(0, Math.min(SIZE - length, begin));
}
