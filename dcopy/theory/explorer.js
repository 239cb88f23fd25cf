// Two features of the flow, moved by sliders, without a kernel: closed_forms.py and explorer.py in JavaScript.
// tests/theory/test_explorer.py holds it to those.
"use strict";

const ROUNDING = 1e-13; // relative distance below which two numbers are the same
const same = (a, b) => Math.abs(a - b) < ROUNDING * Math.max(Math.abs(a), Math.abs(b));

function fixedPoints(eta, variance) { // q- and q+; NaN above the threshold
  const c = 1 + variance, onEdge = same(1, 4 * eta * c);
  const plus = (1 + (onEdge ? 0 : Math.sqrt(1 - 4 * eta * c))) / (2 * c);
  return [onEdge ? plus : eta / (c * plus), plus];
}

function weight(q, variance, { alpha, eps, convention }) { // the feature's, whose predictor eigenvalue is q
  const above = same(q, eps) ? 0 : Math.max(0, q - eps);
  return Math.sqrt(above ** (1 / alpha) / (convention === "views" ? 1 + variance : 1));
}

function finalWeight(delta, eta, variance, options) {
  const [bottom, top] = fixedPoints(eta, variance).map((q) => weight(q, variance, options));
  const edge = top > 0 ? bottom : Infinity;
  return same(delta, edge) ? edge : delta > edge ? top : 0;
}

function velocity(lambda, eta, variance, { alpha, eps, convention }) {
  const c = 1 + variance, q = ((convention === "views" ? c : 1) * lambda ** 2) ** alpha + eps;
  return lambda * (q - c * q ** 2 - eta);
}

function fate(delta, eta, variance, options) {
  const [minus, plus] = fixedPoints(eta, variance), top = weight(plus, variance, options);
  const end = finalWeight(delta, eta, variance, options);
  if (end > 0) return minus === plus ? "threshold" : end === top ? "kept" : "saddle";
  return Number.isNaN(plus) ? "eta" : top === 0 ? "eps" : "basin";
}

function verdict({ eta, variance, delta, ...options }) {
  const [stable, noisy] = [0, variance].map((v) => fate(delta, eta, v, options));
  const lost = {
    eta: "eta is above 1/4, and no feature survives that",
    eps: "eps is not below q+",
    basin: "delta is in the basin of 0",
  };
  const why = { eta: "", eps: ": eps is not below its q+", basin: ": delta is in its basin of 0" };
  if (stable === "threshold") return "on the edge: eta is 1/4, and S rests where its q- and q+ meet";
  if (stable === "saddle") return "on the edge: S starts at its q-, and rests there unstably";
  const alone = stable in lost ? "; S is lost" : "";
  if (noisy === "threshold")
    return `on the edge: eta is the noisy feature's threshold, where its q- and q+ meet${alone}`;
  if (noisy === "saddle")
    return `on the edge: the noisy feature starts at its q-, and rests there unstably${alone}`;
  if (stable in lost)
    return noisy === "kept"
      ? "only the noisy feature is kept: S starts in its basin of 0"
      : `collapse: ${lost[stable]}`;
  if (noisy in why) {
    const theorem = noisy === "eta" && options.eps === 0 ? "as Theorem 1†: " : "";
    return `${theorem}S is kept, the noisy feature is discarded${why[noisy]}`;
  }
  if (variance === 0) return "both are kept: neither has noise";
  return "both are kept: the weight decay is below the noisy feature's threshold";
}

function path(delta, eta, variance, options) { // points [time, weight], close together where it is slow
  const end = finalWeight(delta, eta, variance, options), way = delta - end;
  if (Math.abs(way) < 1e-12) return [[0, end], [1e3, end]];
  const saddle = weight(fixedPoints(eta, variance)[0], variance, options);
  const waist = weight(1 / (2 * (1 + variance)), variance, options);
  const shares = [];
  for (const slow of [delta, end, Number.isNaN(saddle) ? delta : saddle, waist])
    for (let i = 0; i < 800; i++)
      for (const sign of [1, -1])
        shares.push(Math.min(1, Math.max(1e-9, (slow - end) / way + sign * 10 ** ((-9 * i) / 799))));
  shares.sort((a, b) => b - a);
  const slowness = (share) => 1 / Math.max(1e-300, Math.abs(velocity(end + way * share, eta, variance, options)));
  let time = 0, before = slowness(shares[0]);
  const points = [[0, end + way * shares[0]]];
  for (let i = 1; i < shares.length; i++) {
    const now = slowness(shares[i]);
    time += ((before + now) / 2) * (shares[i - 1] - shares[i]) * Math.abs(way);
    points.push([time, end + way * shares[i]]);
    before = now;
  }
  return [...points, [time + 1e3, end]];
}

function stillMoving(way, variance, longest) { // a line where the axis is too short for 99 % of the way
  const [, end] = way[way.length - 1], whole = Math.abs(way[0][1] - end);
  const time = Math.max(0, ...way.filter(([, value]) => Math.abs(value - end) > 0.01 * whole).map(([t]) => t));
  const when = time < 1e6 ? `≈ ${Math.round(time).toLocaleString("en")}` : "> 1,000,000";
  return time > longest ? `σ² = ${variance} is still on its way: 99 % of it take t ${when}` : "";
}

function explorer(root, { sliders, convention, longest, colors, linear }) {
  const W = 640, H = 340, LEFT = 46, RIGHT = 12, TOP = 12, BOTTOM = 40, HIGH = 1.25, LOW = -0.03;
  const decades = 0.4 / 0.9; // of the axis, for times up to `linear`
  const place = (t) => (t < linear ? (decades * t) / linear : decades + Math.log10(t / linear));
  const x = (t) => LEFT + ((W - LEFT - RIGHT) * place(Math.min(t, longest))) / place(longest);
  const y = (value) => TOP + ((H - TOP - BOTTOM) * (HIGH - value)) / (HIGH - LOW);
  const ticks = [0, 1, 10, 100].map((t) => `<text x="${x(t)}" y="${H - 20}" text-anchor="middle">${t}</text>`);
  for (const value of [0, 0.5, 1])
    ticks.push(`<text x="${LEFT - 8}" y="${y(value) + 4}" text-anchor="end">${value}</text>`);
  const control = ([name, [label, low, high, step, value]]) =>
    `<label>${label} <input type="range" name="${name}" min="${low}" max="${high}" step="${step}" value="${value}"
      aria-label="${name}"> <output></output></label>`;
  const choices = Object.entries(convention[1]).map(([label, value]) => `<option value="${value}">${label}</option>`);
  const line = (kind) => colors.map((c) => `<path class="${kind}" fill="none" stroke="${c}"/>`).join("");
  root.innerHTML = `<form>${Object.entries(sliders).map(control).join("")}
    <label>${convention[0]} <select name="convention">${choices.join("")}</select></label></form>
    <p class="verdict" role="status"></p>
    <svg viewBox="0 0 ${W} ${H}" role="img" aria-label="weights of two features against time">
    <rect x="${LEFT}" y="${TOP}" width="${W - LEFT - RIGHT}" height="${H - TOP - BOTTOM}" fill="none"/>
    ${ticks.join("")}<text x="${(LEFT + W) / 2}" y="${H - 4}" text-anchor="middle">time t</text>
    <text x="12" y="${H / 2}" transform="rotate(-90 12 ${H / 2})" text-anchor="middle">weight λ</text>
    ${line("limit")}${line("way")}</svg>
    <p class="legend">${colors.map((c) => `<span style="color:${c}">━</span> <span class="of"></span> `).join("")}
    dashed: where it ends</p><p class="legend note"></p>`;
  const form = root.querySelector("form"), all = (selector) => [...root.querySelectorAll(selector)];
  const update = () => {
    const values = Object.fromEntries(Object.keys(sliders).map((name) => [name, Number(form[name].value)]));
    const { eta, variance, delta, ...options } = { ...values, convention: form.convention.value };
    for (const name in sliders)
      form[name].parentElement.querySelector("output").value = values[name].toFixed(
        (String(sliders[name][3]).split(".")[1] || "").length);
    root.querySelector(".verdict").textContent = verdict({ eta, variance, delta, ...options });
    const ways = [0, variance].map((v) => path(delta, eta, v, options));
    root.querySelector(".note").textContent = ways
      .map((way, i) => stillMoving(way, [0, variance][i], longest)).filter(Boolean).join("; ");
    [0, variance].forEach((v, i) => {
      const end = y(finalWeight(delta, eta, v, options));
      const points = ways[i].filter(([t], j, row) => j === 0 || row[j - 1][0] <= longest);
      all(".limit")[i].setAttribute("d", `M${LEFT} ${end}H${W - RIGHT}`);
      all(".way")[i].setAttribute(
        "d", "M" + points.map(([t, value]) => `${x(t).toFixed(1)} ${y(value).toFixed(1)}`).join("L"));
      all(".of")[i].textContent = `σ² = ${v}`;
    });
  };
  form.addEventListener("input", update);
  update();
}

if (typeof module !== "undefined") module.exports = { finalWeight, fixedPoints, path, stillMoving, verdict };
