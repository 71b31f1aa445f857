const pen = canvas.getContext("2d");
const sheets = data.sheets.map((address) => {
  const image = new Image();
  image.addEventListener("load", () => { draw(); showDetails(); });
  image.src = address;
  return image;
});
data.sheets = null;
const colors = {};
let waiting = false;

// Dots are drawn in a shuffled order, so that no class covers the others; gray ones first.
const order = Array.from({ length: count }, (_, i) => i);
for (let i = count - 1, seed = 1; i > 0; i--) {
  seed = (seed * 48271) % 2147483647;
  const j = seed % (i + 1);
  [order[i], order[j]] = [order[j], order[i]];
}
const gray = (i) => labelled && colorOf(i) === "#999999";
order.sort((a, b) => gray(b) - gray(a));

function readColors() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["page", "text", "accent"]) {
    colors[name] = style.getPropertyValue(`--${name}`).trim();
  }
}

function thumbnail(context, i, left, top, side) {
  const each = data.columns * data.columns;
  const sheet = sheets[Math.floor(i / each)], cell = i % each;
  context.fillStyle = "#8a929b";
  context.fillRect(left, top, side, side);
  if (!sheet.complete || !sheet.naturalWidth) return;
  const sx = (cell % data.columns) * data.size, sy = Math.floor(cell / data.columns) * data.size;
  context.drawImage(sheet, sx, sy, data.size, data.size, left, top, side, side);
}

// A canvas element with one thumbnail, for the panel.
function thumbnailElement(i, side) {
  const made = document.createElement("canvas");
  made.width = made.height = Math.round(side * Math.min(2, devicePixelRatio || 1));
  made.setAttribute("aria-hidden", "true");
  thumbnail(made.getContext("2d"), i, 0, 0, made.width);
  return made;
}

function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; paint(); });
}

function paint() {
  const ratio = devicePixelRatio || 1;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.fillStyle = colors.page;
  pen.fillRect(0, 0, pixels.width, pixels.height);
  if (asTiles()) paintTiles(); else paintDots(ratio);
  if (!asTiles()) paintNames();
  if (focus() >= 0) paintFocus(focus());
}

const dim = (i) => state.emphasis >= 0 && classOf(i) !== state.emphasis;

function paintDots(ratio) {
  const spacing = view.scale * Math.sqrt(Math.max(width * height, 1e-4) / count);
  const radius = Math.min(6, Math.max(1.8, spacing * 0.17));
  const sprites = (labelled ? data.classes.map((each) => each[1]) : [colors.accent])
    .map((color) => dotSprite(color, radius, ratio));
  const side = sprites[0].width / ratio;
  for (const i of order) {
    if (!shown(i)) continue;
    const [px, py] = toScreen(x[i], y[i]);
    if (px < -side || py < -side || px > pixels.width + side || py > pixels.height + side) continue;
    pen.globalAlpha = dim(i) ? 0.08 : 0.85;
    pen.drawImage(sprites[classOf(i)], px - side / 2, py - side / 2, side, side);
  }
  pen.globalAlpha = 1;
}

const madeDots = new Map();
function dotSprite(color, radius, ratio) {
  const key = `${color} ${radius.toFixed(1)} ${ratio}`;
  if (madeDots.size > 2000) madeDots.clear();
  if (!madeDots.has(key)) {
    const made = document.createElement("canvas");
    made.width = made.height = Math.ceil((2 * radius + 2) * ratio);
    const context = made.getContext("2d");
    context.fillStyle = color;
    context.beginPath();
    context.arc(made.width / 2, made.width / 2, radius * ratio, 0, 2 * Math.PI);
    context.fill();
    madeDots.set(key, made);
  }
  return madeDots.get(key);
}

function paintTiles() {
  const side = tileSide();
  for (const i of order) {
    if (!shown(i)) continue;
    const [px, py] = toScreen(x[i], y[i]);
    if (px < -side || py < -side || px > pixels.width + side || py > pixels.height + side) continue;
    pen.globalAlpha = dim(i) ? 0.15 : 1;
    thumbnail(pen, i, px - side / 2, py - side / 2, side);
    if (labelled) frame(px, py, side, colorOf(i), Math.min(3, Math.max(1.5, side / 24)));
  }
  pen.globalAlpha = 1;
}

function frame(px, py, side, color, thickness) {
  pen.strokeStyle = color;
  pen.lineWidth = thickness;
  pen.strokeRect(px - side / 2, py - side / 2, side, side);
}

// Class names, the largest classes first; one that would cover another is left out.
function paintNames() {
  pen.font = `600 ${pixels.width < 500 ? 11 : 13}px system-ui, sans-serif`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.lineJoin = "round";
  const taken = [];
  const bySize = data.centers.map((_, number) => number)
    .filter((number) => !hidden.has(number))
    .sort((a, b) => data.classes[b][2] - data.classes[a][2]);
  for (const number of bySize) {
    const [px, py] = toScreen(...data.centers[number]);
    const half = pen.measureText(data.classes[number][0]).width / 2 + 4;
    if (taken.some((o) => Math.abs(o.px - px) < o.half + half && Math.abs(o.py - py) < 18)) continue;
    taken.push({ px, py, half });
    pen.globalAlpha = state.emphasis >= 0 && state.emphasis !== number ? 0.2 : 1;
    outlined(data.classes[number][0], px, py);
  }
  pen.globalAlpha = 1;
}

function outlined(text, px, py) {
  pen.strokeStyle = colors.page;
  pen.lineWidth = 4;
  pen.strokeText(text, px, py);
  pen.fillStyle = colors.text;
  pen.fillText(text, px, py);
}

// The picture in hand, lines to its nearest, and all of them in front.
function paintFocus(i) {
  const [px, py] = toScreen(x[i], y[i]);
  pen.lineWidth = 1.5;
  pen.strokeStyle = colors.text;
  for (const j of data.neighbors[i]) {
    pen.beginPath();
    pen.moveTo(px, py);
    pen.lineTo(...toScreen(x[j], y[j]));
    pen.stroke();
  }
  for (const j of [...data.neighbors[i]].reverse()) paintMember(j, tileSide(), 5);
  if (asTiles()) paintMember(i, tileSide() * 1.25, 0);
  else paintMember(i, 0, 8);
  if (!asTiles()) paintCallout(i, px, py);
}

// One of the pictures in front: a thumbnail with a frame, or a dot with a ring.
function paintMember(i, side, radius) {
  const [px, py] = toScreen(x[i], y[i]), color = colorOf(i) ?? colors.accent;
  if (asTiles()) {
    thumbnail(pen, i, px - side / 2, py - side / 2, side);
    frame(px, py, side + 4, colors.page, 4);
    frame(px, py, side, color, 3);
    return;
  }
  pen.fillStyle = color;
  pen.strokeStyle = colors.text;
  pen.lineWidth = 2;
  pen.beginPath();
  pen.arc(px, py, radius, 0, 2 * Math.PI);
  pen.fill();
  pen.stroke();
}

// The picture itself beside its dot, where it covers the lines to its nearest least.
function paintCallout(i, px, py) {
  const side = Math.min(96, pixels.width / 5), gap = 18;
  const corners = [[1, -1], [1, 1], [-1, -1], [-1, 1]].map(([right, down]) => {
    const left = right > 0 ? px + gap : px - gap - side, top = down > 0 ? py + gap : py - gap - side;
    const outside = left < 4 || top < 4 || left + side > pixels.width - 4 || top + side > pixels.height - 4;
    const covered = data.neighbors[i].filter((j) => {
      const [jx, jy] = toScreen(x[j], y[j]);
      return (jx - px) * right > 0 && (jy - py) * down > 0;
    }).length;
    return { left, top, cost: covered + (outside ? 100 : 0) };
  });
  const { left, top } = corners.reduce((best, each) => (each.cost < best.cost ? each : best));
  thumbnail(pen, i, left, top, side);
  frame(left + side / 2, top + side / 2, side + 4, colors.page, 4);
  frame(left + side / 2, top + side / 2, side, colorOf(i) ?? colors.accent, 3);
}
