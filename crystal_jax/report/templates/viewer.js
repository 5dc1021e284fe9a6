"use strict";
// Draws unit cells on canvases: orthographic, back to front, turned by dragging. No library: three kinds of shapes,
// sorted by depth, are all that a crystal needs, and twelve viewers of a library would each hold a WebGL context.
const BALL = 0.42; // drawn radius of an atom, as a share of its atomic radius
const FRONT = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];

const multiply = (a, b) => a.map(row => b[0].map((_, j) => row.reduce((sum, x, k) => sum + x * b[k][j], 0)));
const apply = (m, v) => m.map(row => row[0] * v[0] + row[1] * v[1] + row[2] * v[2]);
const minus = (p, q) => p.map((x, i) => x - q[i]);
const cross = (p, q) => [p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]];
const about = (axis, angle) => {
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  return axis === "x" ? [[1, 0, 0], [0, c, -s], [0, s, c]] : [[c, 0, s], [0, 1, 0], [-s, 0, c]];
};

function corners(cell) {
  const bits = [0, 1, 2, 3, 4, 5, 6, 7];
  return bits.map(n => [0, 1, 2].map(k => cell.reduce((sum, v, i) => sum + v[k] * ((n >> i & 1) - 0.5), 0)));
}

function edges(points) {
  const pairs = [];
  for (let n = 0; n < 8; n++) for (let i = 0; i < 3; i++) if (!(n >> i & 1)) pairs.push([points[n], points[n | 1 << i]]);
  return pairs;
}

function shade(color, amount) { // towards white for amount > 0, towards black below
  const parts = [1, 3, 5].map(i => parseInt(color.slice(i, i + 2), 16));
  const end = amount > 0 ? 255 : 0;
  return `rgb(${parts.map(p => Math.round(p + (end - p) * Math.abs(amount))).join(",")})`;
}

function shifts(cell, n) { // from the centre of a supercell of n × n × n cells to the centre of each cell
  const steps = [...Array(n).keys()].map(i => i - (n - 1) / 2);
  return steps.flatMap(a => steps.flatMap(b => steps.map(c => [0, 1, 2].map(k => a * cell[0][k] + b * cell[1][k] + c * cell[2][k]))));
}

function supercell(model, n) {
  const moved = (p, s) => [p[0] + s[0], p[1] + s[1], p[2] + s[2], ...p.slice(3)];
  const result = { elements: model.elements, boxes: [], atoms: [], bonds: [], polyhedra: [] };
  const seen = new Set(); // polyhedra around atoms on a face that two cells share
  for (const s of shifts(model.cell, n)) {
    const first = result.atoms.length;
    result.boxes.push(corners(model.cell).map(p => moved(p, s)));
    result.atoms.push(...model.atoms.map(p => moved(p, s)));
    result.bonds.push(...model.bonds.map(([i, j]) => [i + first, j + first]));
    for (const [kind, points, triangles, sides] of model.polyhedra) {
      const placed = points.map(p => moved(p, s));
      const key = placed.map(p => p.map(x => x.toFixed(1).replace("-0.0", "0.0"))).sort().join();
      if (!seen.has(key)) result.polyhedra.push([kind, placed, triangles, sides]);
      seen.add(key);
    }
  }
  return result;
}

function view(canvas, single, card) {
  let model = supercell(single, 1), solid = false;
  const shown = () => model.boxes.flat().concat(model.atoms, solid ? model.polyhedra.flatMap(shape => shape[1]) : []);
  const far = () => Math.max(...shown().map(p => Math.hypot(p[0], p[1], p[2]))) + 0.5;
  let reach = far();
  let turn = multiply(about("x", 0.32), multiply(about("y", -0.5), multiply(about("x", -Math.PI / 2), FRONT)));

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    [canvas.width, canvas.height] = [width * ratio, height * ratio];
    const pen = canvas.getContext("2d");
    const scale = 0.47 * Math.min(width, height) / reach;
    pen.setTransform(ratio, 0, 0, ratio, width * ratio / 2, height * ratio / 2);
    pen.lineCap = "round";
    const place = p => { const [x, y, z] = apply(turn, p); return [x * scale, -y * scale, z]; };
    const things = [];
    const stroke = (p, q, color, size) => things.push([(p[2] + q[2]) / 2, () => {
      pen.strokeStyle = color; pen.lineWidth = size;
      pen.beginPath(); pen.moveTo(p[0], p[1]); pen.lineTo(q[0], q[1]); pen.stroke();
    }]);
    const middle = (p, q, t) => p.map((x, i) => x + (q[i] - x) * t);
    for (const [p, q] of model.boxes.flatMap(box => edges(box.map(place)))) {
      for (let i = 0; i < 8; i++) stroke(middle(p, q, i / 8), middle(p, q, (i + 1) / 8), "#8b97a5", 1.1);
    }
    const atoms = model.atoms.map(place);
    if (solid) for (const [kind, points, triangles, sides] of model.polyhedra) {
      const color = model.elements[kind][1], at = points.map(place);
      for (const [a, b, c] of triangles) {
        const [p, q, r] = [at[a], at[b], at[c]];
        const normal = Math.abs((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]));
        const facing = normal / (Math.hypot(...cross(minus(q, p), minus(r, p))) || 1);
        things.push([(p[2] + q[2] + r[2]) / 3, () => {
          pen.globalAlpha = 0.55; pen.fillStyle = pen.strokeStyle = shade(color, 0.45 * facing - 0.2); pen.lineWidth = 0.4;
          pen.beginPath(); pen.moveTo(p[0], p[1]); pen.lineTo(q[0], q[1]); pen.lineTo(r[0], r[1]); pen.closePath();
          pen.fill(); pen.stroke(); pen.globalAlpha = 1;
        }]);
      }
      for (const [i, j] of sides) stroke(at[i], at[j], shade(color, -0.3), 1);
    }
    for (const [i, j] of model.bonds) {
      const half = middle(atoms[i], atoms[j], 0.5);
      const size = Math.max(1.5, 0.16 * scale);
      stroke(atoms[i], half, shade(model.elements[model.atoms[i][3]][1], -0.12), size);
      stroke(half, atoms[j], shade(model.elements[model.atoms[j][3]][1], -0.12), size);
    }
    atoms.forEach(([x, y, z], i) => {
      const [, color, radius] = model.elements[model.atoms[i][3]];
      const r = Math.max(2.5, BALL * radius * scale);
      things.push([z + 0.01, () => {
        const light = pen.createRadialGradient(x - 0.35 * r, y - 0.4 * r, 0.1 * r, x, y, r);
        light.addColorStop(0, shade(color, 0.65)); light.addColorStop(0.45, color); light.addColorStop(1, shade(color, -0.35));
        pen.fillStyle = light; pen.beginPath(); pen.arc(x, y, r, 0, 2 * Math.PI); pen.fill();
        pen.strokeStyle = "rgba(20,30,45,0.28)"; pen.lineWidth = 0.7; pen.stroke();
      }]);
    });
    things.sort((a, b) => a[0] - b[0]).forEach(([, paint]) => paint());
  }

  canvas.addEventListener("pointerdown", event => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", event => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    turn = multiply(about("x", event.movementY * 0.01), multiply(about("y", event.movementX * 0.01), turn));
    draw();
  });
  for (const box of card.querySelectorAll("input[data-view]")) box.addEventListener("change", () => {
    if (box.dataset.view === "polyhedra") solid = box.checked;
    else model = supercell(single, box.checked ? 2 : 1);
    reach = far();
    draw();
  });
  window.addEventListener("resize", draw);
  draw();
}

for (const canvas of document.querySelectorAll("canvas[data-model]")) {
  view(canvas, JSON.parse(canvas.dataset.model), canvas.closest(".card"));
}
