function make(tag, text = "", className = "") {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (className) made.className = className;
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
  const large = thumbnailElement(i, 160);
  large.className = "large";
  box.append(large, make("h2", data.names[i]), classLine(i));
  if (data.ids) box.append(make("p", `id ${data.ids[i]}`, "quiet"));
  if (missing.has(i)) box.append(make("p", "The picture cannot be read.", "quiet"));
  box.append(make("h3", "Nearest by cosine"), nearestRow(i));
}

function classLine(i) {
  const line = make("p", "", "class");
  if (!labelled) return line;
  const swatch = make("span", "", "swatch");
  swatch.style.background = colorOf(i);
  line.append(swatch, facts(i));
  return line;
}

function nearestRow(i) {
  const row = make("div", "", "near");
  data.neighbors[i].forEach((j, rank) => {
    const button = make("button");
    const score = data.scores[i][rank].toFixed(4);
    const said = [data.names[j], facts(j), score].filter(Boolean).join(", ");
    button.type = "button";
    button.dataset.picture = j;
    button.title = said;
    button.setAttribute("aria-label", said);
    button.append(thumbnailElement(j, 48), score);
    if (labelled) button.style.setProperty("--frame", colorOf(j));
    button.addEventListener("click", () => goTo(j));
    row.append(button);
  });
  return row;
}

function hover(i) {
  if (i === state.hovered) return;
  state.hovered = i;
  canvas.classList.toggle("over", i >= 0);
  showDetails();
  draw();
}

function hold(i) {
  state.held = i;
  state.hovered = -1;
  showDetails();
  draw();
}

function makeLegend() {
  if (!labelled) return;
  element("legend").hidden = false;
  data.classes.forEach(([name, color, size], number) => {
    const label = make("label"), box = make("input");
    box.type = "checkbox";
    box.checked = true;
    box.style.accentColor = color;
    box.addEventListener("change", () => switchClass(number, box.checked));
    label.append(box, make("span", name), make("small", size.toLocaleString("en")));
    label.title = name;
    label.addEventListener("pointerenter", () => { state.emphasis = number; draw(); });
    label.addEventListener("pointerleave", () => { state.emphasis = -1; draw(); });
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
  if (!found) list.append(make("li", "No picture has this in its name.", "quiet"));
  if (found > MOST_FOUND) list.append(make("li", "There are more: type more of the name.", "quiet"));
}

function foundRow(i) {
  const item = make("li"), button = make("button", "", "row");
  button.type = "button";
  button.append(thumbnailElement(i, 36), make("span", [data.names[i], facts(i)].filter(Boolean).join(" · ")));
  button.addEventListener("click", () => { element("found").hidden = true; goTo(i); canvas.focus(); });
  item.append(button);
  return item;
}
