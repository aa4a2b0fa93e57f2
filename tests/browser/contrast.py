"""How well text stands out from what is behind it (WCAG 2, 1.4.3)."""

# Texts below a contrast of 4.5 to 1, each with its contrast. Colours are read off a canvas, since the computed
# ones may be in any colour space; what is disabled, hidden or drawn is left out.
FAINT_TEXTS = """
const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
const context = canvas.getContext('2d', {willReadFrequently: true});
const read = (colour) => {
  context.clearRect(0, 0, 1, 1);
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
  return {parts: [r, g, b], opacity: a / 255};
};
const over = ({parts, opacity}, ground) => parts.map((part, at) => part * opacity + ground[at] * (1 - opacity));
const behind = (node) => {
  const layers = [];
  for (let at = node; at; at = at.parentElement) layers.push(read(getComputedStyle(at).backgroundColor));
  return layers.reduceRight((ground, layer) => over(layer, ground), [255, 255, 255]);
};
const luminance = (parts) => parts
  .map((part) => part / 255)
  .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
  .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);

const faint = new Set();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.data.trim();
  const node = walker.currentNode.parentElement;
  if (!text || !node.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
  if (node.closest('.visually-hidden, svg, script, style, option, :disabled')) continue;
  const ground = behind(node);
  const lights = [luminance(ground), luminance(over(read(getComputedStyle(node).color), ground))];
  const contrast = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
  if (contrast < 4.5) faint.add(`${text.slice(0, 40)} (${contrast.toFixed(1)})`);
}
return [...faint];
"""


def faint_texts(driver):
    return driver.execute_script(FAINT_TEXTS)
