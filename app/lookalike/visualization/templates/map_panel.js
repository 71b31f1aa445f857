function make(tag, given, ...children) {
  const made = Object.assign(document.createElement(tag), given);
  made.append(...children);
  return made;
}

const facts = (i) => (labelled ? data.classes[data.class[i]][0] : "");
let detailed = null;

function showDetails() {
  const i = focus();
  const key = `${i} ${state.held} ${sheets.filter((sheet) => sheet.complete).length}`;
  if (key === detailed) return;
  detailed = key;
  const box = element("details");
  box.replaceChildren();
  box.hidden = i < 0;
  element("about").hidden = i >= 0;
  if (i < 0) return;
  const large = Object.assign(thumbnailElement(i, 160), { className: "large" });
  box.append(large, make("h2", {}, data.names[i]), classLine(i));
  if (data.ids) box.append(make("p", { className: "quiet" }, `id ${data.ids[i]}`));
  if (missing.has(i)) box.append(make("p", { className: "quiet" }, "The picture cannot be read."));
  const buttons = data.neighbors[i].map((j, rank) => neighbor(j, data.scores[i][rank].toFixed(4)));
  box.append(make("h3", {}, "Nearest by cosine"), make("div", { className: "near" }, ...buttons));
}

function classLine(i) {
  const line = make("p", { className: "class" }), swatch = make("span", { className: "swatch" });
  swatch.style.background = colorOf(i);
  if (labelled) line.append(swatch, facts(i));
  return line;
}

function neighbor(j, score) {
  const said = [data.names[j], facts(j), score].filter(Boolean).join(", ");
  const given = { type: "button", title: said, ariaLabel: said, onclick: () => goTo(j) };
  const button = make("button", given, thumbnailElement(j, 48), score);
  button.dataset.picture = j;
  if (labelled) button.style.setProperty("--frame", colorOf(j));
  return button;
}

function point(at) {
  Object.assign(state, at);
  showDetails();
  draw();
}

function hover(i) {
  canvas.classList.toggle("over", i >= 0);
  if (i !== state.hovered) point({ hovered: i });
}

const hold = (i) => point({ held: i, hovered: -1 });

function makeLegend() {
  if (!labelled) return;
  element("legend").hidden = false;
  data.classes.forEach(([name, color, size], number) => {
    const box = make("input", { type: "checkbox", checked: true });
    box.style.accentColor = color;
    box.onchange = () => switchClass(number, box.checked);
    const label = make("label", { title: name }, box, make("span", {}, name));
    label.append(make("small", {}, size.toLocaleString("en")));
    label.onpointerenter = () => { state.emphasis = number; draw(); };
    label.onpointerleave = () => { state.emphasis = -1; draw(); };
    element("classes").append(label);
  });
  element("all").addEventListener("click", () => switchAll(true));
  element("none").addEventListener("click", () => switchAll(false));
}

function switchClass(number, on) {
  if (on) hidden.delete(number); else hidden.add(number);
  draw();
}

function switchAll(on) {
  element("classes").querySelectorAll("input").forEach((box, number) => {
    box.checked = on;
    switchClass(number, on);
  });
}

const MOST_FOUND = 20;
function findByName() {
  const wanted = element("search").value.trim().toLocaleLowerCase();
  const list = element("found");
  list.replaceChildren();
  list.hidden = !wanted;
  if (!wanted) return;
  const fits = (text) => text.toLocaleLowerCase().includes(wanted);
  let found = 0;
  for (let i = 0; i < count && found <= MOST_FOUND; i++) {
    if (!fits(data.names[i]) && !(data.ids && fits(data.ids[i]))) continue;
    if (++found <= MOST_FOUND) list.append(foundRow(i));
  }
  const note = found > MOST_FOUND ? "There are more: type more of the name."
    : found ? "" : "No picture has this in its name.";
  if (note) list.append(make("li", { className: "quiet" }, note));
}

function foundRow(i) {
  const text = make("span", {}, [data.names[i], facts(i)].filter(Boolean).join(" · "));
  const go = () => { element("found").hidden = true; goTo(i); canvas.focus(); };
  const given = { type: "button", className: "row", onclick: go };
  return make("li", {}, make("button", given, thumbnailElement(i, 36), text));
}

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
  if (!before) return hover(pictureAt(...now));
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
