const pointers = new Map(); // those that are down: id -> [x, y]
let traveled = 0;

const placeOf = (event) => {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

canvas.addEventListener("pointerdown", (event) => {
  if (event.button > 0) return;
  if (!pointers.size) traveled = 0;
  pointers.set(event.pointerId, placeOf(event));
  canvas.setPointerCapture(event.pointerId);
});

canvas.addEventListener("pointermove", (event) => {
  const now = placeOf(event), before = pointers.get(event.pointerId);
  if (!before) {
    hover(pictureAt(...now));
    return;
  }
  const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
  pointers.set(event.pointerId, now);
  traveled += Math.hypot(now[0] - before[0], now[1] - before[1]);
  if (traveled < 5) return;
  canvas.classList.add("moving");
  hover(-1);
  if (other) pinch(before, now, other);
  else pan(now[0] - before[0], now[1] - before[1]);
});

function pinch(before, now, other) {
  const distance = (a) => Math.max(1, Math.hypot(a[0] - other[0], a[1] - other[1]));
  pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
  zoom(distance(now) / distance(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
}

canvas.addEventListener("pointerup", (event) => {
  const tapped = pointers.delete(event.pointerId) && !pointers.size && traveled < 5;
  canvas.classList.remove("moving");
  if (tapped) hold(pictureAt(...placeOf(event), event.pointerType === "touch" ? 24 : undefined));
});
canvas.addEventListener("pointercancel", (event) => pointers.delete(event.pointerId));
canvas.addEventListener("pointerleave", () => hover(-1));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const step = event.deltaMode === 1 ? event.deltaY * 20 : event.deltaY; // lines or pixels
  zoom(Math.exp(-step * (event.ctrlKey ? 0.01 : 0.0015)), ...placeOf(event));
  hover(pictureAt(...placeOf(event)));
}, { passive: false });

const keys = {
  ArrowLeft: () => pan(60, 0),
  ArrowRight: () => pan(-60, 0),
  ArrowUp: () => pan(0, 60),
  ArrowDown: () => pan(0, -60),
  "+": () => zoom(1.4),
  "=": () => zoom(1.4),
  "-": () => zoom(1 / 1.4),
  0: fit,
  Enter: () => hold(pictureAt(pixels.width / 2, pixels.height / 2, Infinity)),
};
canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  element("found").hidden = true;
  hold(-1);
});

element("in").addEventListener("click", () => zoom(1.6));
element("out").addEventListener("click", () => zoom(1 / 1.6));
element("fit").addEventListener("click", fit);
element("search").addEventListener("input", findByName);
element("search").addEventListener("focus", findByName);
element("search").addEventListener("keydown", (event) => {
  if (event.key === "Enter") element("found").querySelector("button")?.click();
});
addEventListener("pointerdown", (event) => {
  if (!element("finder").contains(event.target)) element("found").hidden = true;
});

function resize() {
  const ratio = devicePixelRatio || 1, before = pixels;
  pixels = { width: canvas.clientWidth, height: canvas.clientHeight };
  canvas.width = Math.round(pixels.width * ratio);
  canvas.height = Math.round(pixels.height * ratio);
  if (before.width === 1 || view.scale === view.fitted) fit(); else draw();
}

readColors();
makeLegend();
if (matchMedia("(max-width: 44rem)").matches) element("legend").open = false;
new ResizeObserver(resize).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColors(); draw(); });
showDetails();
// For the console and for tests.
window.lookalike = { view, state, screenOf: (i) => toScreen(x[i], y[i]), goTo, asTiles };
